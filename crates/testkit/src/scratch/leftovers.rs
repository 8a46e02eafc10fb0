//! What killed tests left behind.

use rustix::mount::UnmountFlags;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// How the names of all that tests make begin. A process id follows.
pub const TAG: &str = "vellum-test-";

/// What [`clean_leftovers`] found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Mounts.
    pub mounts: usize,
    /// Folders, with the loop files in them.
    pub folders: usize,
}

/// Removes the mounts and folders of test processes that are no more. Loop devices go with their mounts.
///
/// # Errors
/// The mount table or the folder for temporary files cannot be read, or a folder cannot be removed.
pub fn clean_leftovers() -> io::Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let temp = std::env::temp_dir();
    for entry in fs::read_dir(&temp)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(owner) = owner(&name.to_string_lossy()) else { continue };
        if is_alive(owner) {
            continue;
        }
        cleaned.mounts += unmount_below(&entry.path())?;
        match fs::remove_dir_all(entry.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", entry.path().display())));
            }
            _ => cleaned.folders += 1,
        }
    }
    Ok(cleaned)
}

/// The process that made a thing of this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(TAG)?.split('-').next()?.parse().ok()
}

fn is_alive(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// The mountpoints at and below `folder`, in the order they were made.
///
/// # Errors
/// /proc cannot be read.
pub fn mounts_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mountpoints = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let field = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescape(field))))
    });
    Ok(mountpoints.filter(|path| path.starts_with(folder)).collect())
}

/// Unmounts all at and below `folder`, the last mount first; what is busy is detached. Says how many there were.
///
/// # Errors
/// /proc cannot be read, or the kernel refuses.
pub fn unmount_below(folder: &Path) -> io::Result<usize> {
    let mounts = mounts_below(folder)?;
    for mountpoint in mounts.iter().rev() {
        let plain = rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW);
        match plain
            .or_else(|_| rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH))
        {
            // Gone meanwhile.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => {
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("{}: {error}", mountpoint.display()),
                ));
            }
        }
    }
    Ok(mounts.len())
}

/// mountinfo writes blanks, tabs, line ends and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        if let Some(digits) = digits {
            out.push(
                digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
            );
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_unescaped_and_owners_are_read() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
        assert_eq!(unescape(br"\9"), br"\9");
        assert_eq!(owner("vellum-test-12-0-xfs"), Some(12));
        assert_eq!(owner("vellum-test-x"), None);
        assert_eq!(owner("other-12"), None);
    }
}
