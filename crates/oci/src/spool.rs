//! Files without a name, for what must be on disk before it can be used.

use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Space that spooling leaves free, so that what else the store does can still end well.
const FLOOR: u64 = 64 << 20;
/// How often free space is looked at.
const STRIDE: u64 = 32 << 20;

/// A file in `folder` that has no name, so that nothing is left whatever happens to this process.
pub(crate) fn unnamed(folder: &Path) -> Result<File> {
    let operation = || format!("make a temporary file in {}", folder.display());
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        // File systems without O_TMPFILE: make it and take the name away at once.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(format!("spool-{}-{:?}", std::process::id(), std::thread::current().id()));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(Error::io(operation()))?;
            std::fs::remove_file(&path).map_err(Error::io(operation()))?;
            Ok(file)
        }
        Err(errno) => Err(Error::io(operation())(errno.into())),
    }
}

/// Copies all of `input` into a file without a name. `what` names the input in errors.
pub(crate) fn fill(mut input: impl Read, folder: &Path, what: &str) -> Result<File> {
    let mut file = unnamed(folder)?;
    let mut buffer = vec![0; 256 << 10];
    let (mut written, mut looked) = (0u64, 0u64);
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(format!("read {what}"))(error)),
        };
        let spool = |source| Error::io(format!("spool {what} into {}", folder.display()))(source);
        if written >= looked {
            looked = written + STRIDE;
            let fs = rustix::fs::fstatvfs(&file).map_err(|errno| spool(errno.into()))?;
            // A file system that does not tell its size has no floor.
            if fs.f_blocks > 0 && fs.f_bavail.saturating_mul(fs.f_frsize) < FLOOR + STRIDE {
                return Err(spool(std::io::ErrorKind::StorageFull.into()));
            }
        }
        file.write_all(&buffer[..count]).map_err(spool)?;
        written += count as u64;
    }
}
