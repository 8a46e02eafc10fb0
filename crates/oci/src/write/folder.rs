//! An OCI layout in a folder.
//!
//! ```text
//! DIR/oci-layout  index.json        replaced whole, by rename
//! DIR/blobs/sha256/HEX              appears whole, by rename
//! DIR/blobs/sha256/.tmp-PID         in the making
//! ```
//!
//! One process at a time adds to a layout: it holds a lock on the folder, so that none takes another's entries out of the index, and what
//! is still in the making when it comes is a killed process's. Where a save was killed before it wrote the marker, the next goes on.
//!
//! Each file is on the disk before it gets its name, and its name before the next: the index, which comes last, never names what a
//! power cut could take.

use super::place::{Fill, Place, path_of, read_small};
use crate::spec::MAX_MANIFEST;
use crate::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use vellum_archive::digest::HashingWriter;
use vellum_types::Digest;

/// How the names of files in the making begin.
const TEMPORARY: &[u8] = b".tmp-";

pub(super) struct FolderPlace {
    root: PathBuf,
    /// Held as long as the layout is written.
    _lock: File,
}

/// A file in the making, which goes when it is dropped before it got its name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing is there any more when it got its name.
        let _ = fs::remove_file(&self.0);
    }
}

impl FolderPlace {
    /// A new or empty folder, or one that holds a layout already.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        fs::create_dir_all(path).map_err(Error::io(format!("make the folder {shown}")))?;
        let lock = File::open(path).map_err(Error::io(format!("open {shown}")))?;
        let locked = match rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive)) {
            Ok(()) => true,
            // Some network file systems lock no folders: there whoever saves sees to it himself.
            Err(Errno::NOTSUP | Errno::NOLCK | Errno::BADF | Errno::INVAL | Errno::NOSYS) => false,
            Err(errno) => return Err(Error::io(format!("lock {shown}"))(errno.into())),
        };
        if !path.join("oci-layout").exists() && !list(path)?.iter().all(|name| name == "blobs") {
            let reason = "the folder is neither empty nor an OCI layout".into();
            return Err(Error::Output { output: shown, reason });
        }
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::io(format!("make the folder {}", blobs.display())))?;
        if locked {
            for name in list(&blobs)?.iter().filter(|name| name.as_encoded_bytes().starts_with(TEMPORARY)) {
                let _ = fs::remove_file(blobs.join(name));
            }
        }
        Ok(Self { root: path.to_owned(), _lock: lock })
    }

    fn write(&self, fill: &mut Fill<'_>) -> Result<(Temporary, Digest, u64)> {
        let path = self.root.join(format!("blobs/sha256/.tmp-{}", std::process::id()));
        let failed = || Error::io(format!("write {}", path.display()));
        let file = File::create(&path).map_err(failed())?;
        let temporary = Temporary(path.clone());
        let mut out = HashingWriter::new(BufWriter::with_capacity(256 << 10, file));
        fill(&mut out)?;
        let (digest, size, mut out) = out.finish();
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(failed())?;
        Ok((temporary, digest, size))
    }

    fn name(&self, temporary: &Temporary, path: &str) -> Result<()> {
        let target = self.root.join(path);
        let folder = target.parent().unwrap_or(&self.root);
        fs::rename(&temporary.0, &target)
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(Error::io(format!("write {}", target.display())))
    }
}

/// The names in a folder.
fn list(path: &Path) -> Result<Vec<OsString>> {
    let failed = || Error::io(format!("list {}", path.display()));
    let entries = fs::read_dir(path).map_err(failed())?;
    entries.map(|entry| Ok(entry.map_err(failed())?.file_name())).collect()
}

impl Place for FolderPlace {
    fn blob(&mut self, fill: &mut Fill<'_>) -> Result<(Digest, u64)> {
        let (temporary, digest, size) = self.write(fill)?;
        self.name(&temporary, &path_of(&digest))?;
        Ok((digest, size))
    }

    fn known_blob(&mut self, digest: &Digest, size: u64, fill: &mut Fill<'_>) -> Result<()> {
        let path = path_of(digest);
        let present = fs::metadata(self.root.join(&path)).is_ok_and(|facts| facts.len() == size);
        if present { Ok(()) } else { self.file(&path, size, fill) }
    }

    fn file(&mut self, path: &str, size: u64, fill: &mut Fill<'_>) -> Result<()> {
        let (temporary, _, written) = self.write(fill)?;
        if written != size {
            return Err(Error::damaged(path, format!("it has {written} bytes where {size} were recorded")));
        }
        self.name(&temporary, path)
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let path = self.root.join(path);
        std::os::unix::fs::symlink(target, &path).map_err(Error::io(format!("make {}", path.display())))
    }

    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(path);
        read_small(File::open(&path), MAX_MANIFEST, &path.display().to_string())
    }
}
