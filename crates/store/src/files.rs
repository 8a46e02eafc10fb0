//! Small things done with files and folders.

use crate::{Error, Result};
use std::os::fd::AsFd;
use std::path::Path;

/// An entry of one of the store's own folders. Names that are not text are nothing the store made.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
}

/// What a folder holds; nothing if it is not there.
pub(crate) fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let failed = |e| Error::io("read the folder", folder, e);
    let reader = match std::fs::read_dir(folder) {
        Ok(reader) => reader,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut out = Vec::new();
    for entry in reader {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            out.push(Entry { name });
        }
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// A file's bytes; `None` if it is not there.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Makes `bytes` the content of a file, durably, whole or not at all.
pub(crate) fn publish(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let dir = crate::layout::open_folder(folder)?;
    vellum_sys::file::publish(&dir, name, bytes).map_err(|e| Error::io("write", folder.join(name), e))
}

/// As [`publish`], but durable only with the caller's next barrier.
pub(crate) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    put(folder, name, bytes, |temporary, path| std::fs::rename(temporary, path))
}

fn put(
    folder: &Path,
    name: &str,
    bytes: &[u8],
    place: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
) -> Result<()> {
    let temporary = folder.join(format!(
        "{}{}",
        vellum_sys::file::TEMPORARY_PREFIX,
        vellum_sys::random::hex::<8>().map_err(|e| Error::io("draw a random number", "getrandom", e))?
    ));
    let path = folder.join(name);
    let failed = |e| Error::io("write", &path, e);
    let result = write_new(&temporary, bytes).and_then(|()| place(&temporary, &path));
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(failed)
}

/// As [`replace`], but leaves a file that is there as it is.
pub(crate) fn provide(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    put(folder, name, bytes, |temporary, path| {
        use rustix::fs::{CWD, RenameFlags};
        match rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => std::fs::remove_file(temporary),
            result => Ok(result?),
        }
    })
}

/// Makes a file that is not there, with this content; on the disk with the caller's next barrier.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    vellum_sys::file::create(rustix::fs::CWD, path, 0o600)?.write_all(bytes)
}

/// Removes a file or a folder with all that is in it; nothing to do is no error.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    let failed = |e| Error::io("delete", path, e);
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// What a file or a whole folder takes on disk.
pub(crate) fn bytes_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = path.symlink_metadata() else { return 0 };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            bytes += bytes_of(&entry.path());
        }
    }
    bytes
}

/// Brings a small folder to the disk: these files of it, it itself, and its name in the folder above.
pub(crate) fn sync_folder(folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = folder.join(name);
        std::fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|e| Error::io("sync", path, e))?;
    }
    for folder in [Some(folder), folder.parent()].into_iter().flatten() {
        let dir = crate::layout::open_folder(folder)?;
        rustix::fs::fsync(&dir).map_err(|e| Error::io("sync", folder, e))?;
    }
    Ok(())
}

/// Does work that writes many files, and has what was written so far brought to the disk meanwhile, so that the barrier after it has
/// less to wait for. That barrier is still needed, and it is what tells of errors.
pub(crate) fn writing_back<T>(root: &Path, work: impl FnOnce() -> T) -> T {
    const EVERY: std::time::Duration = std::time::Duration::from_millis(100);
    // A descriptor of its own: an error of the write-back is told once to each.
    let Ok(dir) = crate::layout::open_folder(root) else { return work() };
    let (done, end) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while end.recv_timeout(EVERY) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = rustix::fs::syncfs(&dir);
            }
        });
        let out = work();
        drop(done);
        out
    })
}

/// The barrier: all that was written to the file system of `dir` since it was opened is on the disk, or an error says that it
/// is not.
pub(crate) fn barrier(dir: impl AsFd, root: &Path) -> Result<()> {
    rustix::fs::syncfs(dir).map_err(|e| Error::io("bring the written data to the disk", root, e))
}
