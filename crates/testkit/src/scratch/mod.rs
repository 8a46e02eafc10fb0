//! File systems for tests.
//!
//! ```text
//! $TMPDIR/vellum-test-<pid>-<n>-<kind>/      on the file system that is there
//!     image                                  ext4, xfs, btrfs: a sparse file, mounted through a loop device
//!     mnt/                                   where it (or a tmpfs) is mounted; the folder the test gets
//! ```
//!
//! A [`Scratch`] takes all of that away when it is dropped: first what is mounted below it, the last mount first,
//! lazily what is busy; then the loop device, which goes with its mount (`LO_FLAGS_AUTOCLEAR`); then the folder. A test that is
//! killed leaves its folder. [`clean_leftovers`] finds those by their name, asks whether the process in the name
//! lives, and removes what it left. Nothing without the tag `vellum-test-` is touched.

mod leftovers;
mod rot;

pub use leftovers::{Cleaned, TAG, clean_leftovers, mounts_below, unmount_below};

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Whatever the folder for temporary files is on: most often the machine's own disk.
    Here,
    /// ext4 in a loop file.
    Ext4,
    /// XFS with reflink in a loop file.
    Xfs,
    /// btrfs in a loop file.
    Btrfs,
    /// Memory.
    Tmpfs,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Here, Self::Ext4, Self::Xfs, Self::Btrfs, Self::Tmpfs];

    /// The name, as in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
        }
    }

    /// Whether files can share blocks on it.
    pub fn has_reflink(self) -> bool {
        matches!(self, Self::Xfs | Self::Btrfs)
    }

    fn mkfs(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Here | Self::Tmpfs => None,
            Self::Ext4 => Some(&["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]),
            Self::Xfs => Some(&["mkfs.xfs", "-q", "-f", "-m", "reflink=1"]),
            Self::Btrfs => Some(&["mkfs.btrfs", "-q", "-f"]),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a scratch file system cannot be had: the sentence for [`skip!`](crate::skip!), or a failure.
#[derive(Debug)]
pub enum Unavailable {
    /// This machine or this user does not have what it takes.
    Missing(String),
    /// It should have worked.
    Failed(io::Error),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(reason) => f.write_str(reason),
            Self::Failed(error) => write!(f, "cannot make a scratch file system: {error}"),
        }
    }
}

impl std::error::Error for Unavailable {}

impl From<io::Error> for Unavailable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A file system that goes away with this value.
#[derive(Debug)]
pub struct Scratch {
    kind: Kind,
    folder: PathBuf,
    root: PathBuf,
}

impl Scratch {
    /// The default size of a file system in a loop file: sparse, so that it costs what is written.
    pub const SIZE_MIB: u64 = 2048;

    /// A file system of this kind.
    ///
    /// # Errors
    /// [`Unavailable::Missing`] without root or without the program that makes it.
    pub fn new(kind: Kind) -> Result<Self, Unavailable> {
        Self::sized(kind, Self::SIZE_MIB)
    }

    /// A file system of this kind and size. XFS needs 300 MiB, btrfs 110.
    ///
    /// # Errors
    /// As [`Scratch::new`].
    pub fn sized(kind: Kind, mib: u64) -> Result<Self, Unavailable> {
        Self::made_with(kind, mib, &[])
    }

    /// A file system of this kind and size, made with more options of its mkfs, such as `-O verity` of ext4's.
    ///
    /// # Errors
    /// As [`Scratch::new`].
    pub fn made_with(kind: Kind, mib: u64, options: &[&str]) -> Result<Self, Unavailable> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        if kind != Kind::Here && !rustix::process::geteuid().is_root() {
            return Err(Unavailable::Missing(format!("{kind} needs root to be mounted")));
        }
        let name = format!("{TAG}{}-{number}-{kind}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let root = folder.join("mnt");
        std::fs::create_dir_all(&root)?;
        // From here on, dropping the value cleans up.
        let scratch = Self { kind, folder, root };
        scratch.mount(mib, options)?;
        Ok(scratch)
    }

    fn mount(&self, mib: u64, options: &[&str]) -> Result<(), Unavailable> {
        if self.kind == Kind::Tmpfs {
            let size = format!("size={mib}m,mode=755");
            let mount =
                Command::new("mount").args(["-t", "tmpfs", "-o", &size, TAG]).arg(&self.root).output();
            return finished("mount", mount);
        }
        let Some(mkfs) = self.kind.mkfs() else { return Ok(()) };
        let image = self.folder.join("image");
        std::fs::File::create(&image)?.set_len(mib << 20)?;
        finished(mkfs[0], Command::new(mkfs[0]).args(&mkfs[1..]).args(options).arg(&image).output())?;
        let mount = |options: &str| {
            let mut mount = Command::new("mount");
            mount.args(["-t", self.kind.name(), "-o", options]).arg(&image).arg(&self.root);
            finished("mount", mount.output())
        };
        if self.kind != Kind::Xfs {
            return mount("loop");
        }
        // With project quotas where the kernel has them.
        mount("loop,nouuid,prjquota").or_else(|_| mount("loop,nouuid"))
    }

    /// The folder to work in: the root of the file system, or a new folder for [`Kind::Here`].
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The loop file, to be looked at or cloned.
    pub fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A folder in it, made.
    ///
    /// # Errors
    /// The file system's.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.root.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Takes it away now and says whether something was left mounted in it, which a test that cleans up
    /// after itself has not.
    ///
    /// # Errors
    /// The mounts that were still there, or the file system's error.
    pub fn close(self) -> io::Result<()> {
        let left: Vec<_> = mounts_below(&self.root)?.into_iter().filter(|path| *path != self.root).collect();
        drop(self);
        if left.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(format!("left mounted: {left:?}")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is found by its name later.
        let _ = unmount_below(&self.folder);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The outcome of a program that must succeed.
fn finished(program: &str, output: io::Result<std::process::Output>) -> Result<(), Unavailable> {
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Unavailable::Failed(io::Error::other(format!("{program}: {} ({said})", output.status))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Unavailable::Missing(format!("{program} is not installed")))
        }
        Err(error) => Err(Unavailable::Failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stays_clean(kind: Kind) {
        let scratch = match Scratch::new(kind) {
            Ok(scratch) => scratch,
            Err(Unavailable::Missing(reason)) => crate::skip!("{reason}"),
            Err(error) => panic!("{error}"),
        };
        let folder = scratch.folder.clone();
        std::fs::write(scratch.path().join("file"), "content").unwrap();
        if kind != Kind::Here {
            assert_eq!(mounts_below(&folder).unwrap(), [scratch.path()]);
        }
        // Busy: an open file must not keep it.
        let open = std::fs::File::open(scratch.path().join("file")).unwrap();
        drop(scratch);
        assert!(!folder.exists());
        assert_eq!(mounts_below(&folder).unwrap(), Vec::<PathBuf>::new());
        drop(open);
    }

    #[test]
    fn plain_here_goes_away() {
        stays_clean(Kind::Here);
    }

    #[test]
    fn loop_file_systems_go_away() {
        stays_clean(Kind::Ext4);
        stays_clean(Kind::Xfs);
        stays_clean(Kind::Btrfs);
    }

    #[test]
    fn root_tmpfs_goes_away() {
        stays_clean(Kind::Tmpfs);
    }

    #[test]
    fn root_remains_of_dead_processes_are_removed() {
        if !rustix::process::geteuid().is_root() {
            crate::skip!("mounting needs root");
        }
        // No process has this id: it is above the kernel's limit.
        let folder = std::env::temp_dir().join(format!("{TAG}4194999-0-tmpfs"));
        std::fs::create_dir_all(folder.join("mnt")).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", TAG]).arg(folder.join("mnt")).status().unwrap();
        assert!(mount.success());
        let mine = Scratch::new(Kind::Here).unwrap_or_else(|error| panic!("{error}"));
        let cleaned = clean_leftovers().unwrap();
        assert!(cleaned.folders >= 1, "{cleaned:?}");
        assert!(!folder.exists());
        assert!(mine.path().exists(), "what a living process uses stays");
    }
}
