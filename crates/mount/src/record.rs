//! Records: one line of JSON in a file that is also a lock.

use crate::{Error, Result};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vellum_sys::mount::MountId;
use vellum_sys::mountinfo::MountNamespace;
use vellum_types::LayerId;

/// Which mount, where no other can be meant: the boot, the namespace, the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountName {
    boot: String,
    namespace: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace_id: Option<u64>,
    mount: u64,
    unique: bool,
}

impl MountName {
    pub(crate) fn new(boot: &str, namespace: MountNamespace, id: MountId) -> Self {
        Self {
            boot: boot.to_owned(),
            namespace: namespace.inode,
            namespace_id: namespace.id,
            mount: id.id,
            unique: id.unique,
        }
    }

    pub(crate) fn is_of_boot(&self, boot: &str) -> bool {
        self.boot == boot
    }

    pub(crate) fn namespace(&self) -> MountNamespace {
        MountNamespace { inode: self.namespace, id: self.namespace_id }
    }

    pub(crate) fn id(&self) -> MountId {
        MountId { id: self.mount, unique: self.unique }
    }
}

/// The record of a mounted layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) name: MountName,
    pub(crate) count: u32,
    pub(crate) read_only: bool,
    /// The keys of the steps it holds, in the order they were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<String>,
}

/// The record of a prepared step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    pub(crate) state: StepState,
    pub(crate) holders: Vec<LayerId>,
}

/// What a step made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepState {
    /// A mount at `shared/<key>`.
    Mount(MountName),
    /// A loop device; it lives by its users, so that the number of the device is only where to look first.
    Loop { boot: String, device: String },
}

impl StepState {
    pub(crate) fn is_of_boot(&self, boot: &str) -> bool {
        match self {
            Self::Mount(name) => name.is_of_boot(boot),
            Self::Loop { boot: recorded, .. } => recorded == boot,
        }
    }
}

/// A folder of records.
#[derive(Debug)]
pub(crate) struct Records {
    fd: OwnedFd,
    path: PathBuf,
}

impl Records {
    /// Opens the folder, makes it if need be.
    pub(crate) fn open(parent: &OwnedFd, parent_path: &Path, name: &str) -> Result<Self> {
        let path = parent_path.join(name);
        let fd = vellum_sys::file::ensure_folder(parent, name, 0o700)
            .map_err(|error| Error::io("open the folder", &path, error))?;
        Ok(Self { fd, path })
    }

    /// The names of all records.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        crate::runtime::names(&self.fd).map_err(|error| Error::io("read the folder", &self.path, error))
    }

    /// Locks the record `name`, waiting; makes an empty one if there is none.
    pub(crate) fn lock(&self, name: &str) -> Result<Locked<'_>> {
        loop {
            if let Some(locked) = self.lock_once(name, FlockOperation::LockExclusive)? {
                return Ok(locked);
            }
        }
    }

    /// As [`Records::lock`], but `None` if somebody else has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<Locked<'_>>> {
        self.lock_once(name, FlockOperation::NonBlockingLockExclusive)
    }

    /// `None` if somebody else has it, or removed it before it could be locked.
    fn lock_once(&self, name: &str, operation: FlockOperation) -> Result<Option<Locked<'_>>> {
        let fail = |error: Errno| Error::io("lock the record", self.path.join(name), error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600)).map_err(fail)?;
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(fail(error)),
        }
        let has_name = rustix::fs::fstat(&file).map_err(fail)?.st_nlink > 0;
        Ok(has_name.then(|| Locked {
            records: self,
            name: name.to_owned(),
            file: File::from(file),
            empty: false,
        }))
    }

    /// Reads a record without waiting for its lock. `None` also for one that is being made.
    pub(crate) fn peek<R: DeserializeOwned>(&self, name: &str) -> Result<Option<R>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(file) => self.parse(name, &File::from(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("open the record", self.path.join(name), error)),
        }
    }

    /// The record's first line; `None` if it has no end: what a killed process left half written is as good as nothing, because the mount that
    /// it would have told of never got its place. A whole line that makes no sense is an error: it may be a later Vellum's.
    fn parse<R: DeserializeOwned>(&self, name: &str, file: &File) -> Result<Option<R>> {
        let fail = |error| Error::io("read the record", self.path.join(name), error);
        let mut bytes = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            let length = file.read_at(&mut buffer, bytes.len() as u64).map_err(fail)?;
            bytes.extend_from_slice(&buffer[..length]);
            if length < buffer.len() {
                break;
            }
        }
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let line = lines.next().filter(|line| line.ends_with(b"\n"));
        line.map(serde_json::from_slice).transpose().map_err(|error| fail(error.into()))
    }
}

/// A record that this process has locked.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    records: &'a Records,
    name: String,
    file: File,
    /// It was read and there was nothing in it, nor was anything written: the file is there for the lock only, and goes with it.
    empty: bool,
}

impl Locked<'_> {
    /// What it says.
    pub(crate) fn read<R: DeserializeOwned>(&mut self) -> Result<Option<R>> {
        let record = self.records.parse(&self.name, &self.file)?;
        self.empty = record.is_none();
        Ok(record)
    }

    /// Changes what it says. Only the first line counts, so that a kill between the two calls leaves a valid record.
    pub(crate) fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let fail = |error| Error::io("write the record", self.records.path.join(&self.name), error);
        let mut line = serde_json::to_vec(record).map_err(|error| fail(error.into()))?;
        line.push(b'\n');
        self.empty = false;
        self.file.write_all_at(&line, 0).map_err(fail)?;
        let old_length = rustix::fs::fstat(&self.file).map_err(|error| fail(error.into()))?.st_size;
        if old_length > line.len() as i64 {
            self.file.set_len(line.len() as u64).map_err(fail)?;
        }
        Ok(())
    }

    /// Removes it, and lets go of the lock.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.empty = false;
        match rustix::fs::unlinkat(&self.records.fd, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::io("remove the record", self.records.path.join(&self.name), error)),
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.empty {
            let _ = rustix::fs::unlinkat(&self.records.fd, &self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_only_the_first_line_of_a_record_counts() {
        let dir = tempfile::tempdir().unwrap();
        let fd = vellum_sys::file::open_folder(rustix::fs::CWD, dir.path()).unwrap();
        let records = Records::open(&fd, dir.path(), "r").unwrap();
        let mut locked = records.lock("x").unwrap();
        assert_eq!(locked.read::<Vec<u32>>().unwrap(), None);
        locked.write(&vec![1, 2, 3]).unwrap();
        locked.write(&vec![1]).unwrap();
        assert_eq!(std::fs::read(dir.path().join("r/x")).unwrap(), b"[1]\n");
        assert!(records.try_lock("x").unwrap().is_none());
        drop(locked);
        std::fs::write(dir.path().join("r/x"), b"[4]\n2,3]\n").unwrap();
        assert_eq!(records.peek::<Vec<u32>>("x").unwrap(), Some(vec![4]));
        std::fs::write(dir.path().join("r/x"), b"[4").unwrap();
        assert_eq!(records.peek::<Vec<u32>>("x").unwrap(), None);
        std::fs::write(dir.path().join("r/x"), b"{}\n").unwrap();
        assert!(records.lock("x").unwrap().read::<Vec<u32>>().is_err());
        assert_eq!(records.names().unwrap(), ["x"], "what is not understood is kept");
        std::fs::write(dir.path().join("r/x"), b"[4").unwrap();
        let mut locked = records.lock("x").unwrap();
        assert_eq!(locked.read::<Vec<u32>>().unwrap(), None);
        drop(locked);
        assert_eq!(records.names().unwrap(), Vec::<String>::new(), "a lock without a record leaves no file");
    }

    #[test]
    fn plain_who_waited_for_a_removed_record_gets_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let fd = vellum_sys::file::open_folder(rustix::fs::CWD, dir.path()).unwrap();
        let records = Records::open(&fd, dir.path(), "r").unwrap();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..200 {
                            let mut locked = records.lock("x").unwrap();
                            assert_eq!(locked.read::<u32>().unwrap(), None);
                            locked.write(&1u32).unwrap();
                            locked.remove().unwrap();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
