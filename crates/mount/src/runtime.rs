//! The runtime folder.

use crate::{Error, Result};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use vellum_sys::file::private_folder;

/// The runtime folder of the store with this id: `/run/vellum/ID` as root, `$XDG_RUNTIME_DIR/vellum/ID` otherwise (`/run/user/UID` when it is not
/// set), `/tmp/vellum-UID/ID` where there is no such folder. Made if need be; private to this user.
///
/// In a user namespace that an ordinary user's store lives in, UID is the user's number outside, so that the same folder is found inside and
/// outside.
///
/// # Errors
/// It cannot be made, or belongs to somebody else, or others may enter it (in /tmp anybody might have prepared it).
pub fn runtime_folder(store: &str) -> Result<PathBuf> {
    if !is_file_name(store) {
        return Err(Error::plan(format!("'{store}' is not the id of a store")));
    }
    let base = base_folder();
    private_folder(&base).map_err(Error::Runtime)?;
    let folder = base.join(store);
    private_folder(&folder).map_err(Error::Runtime)?;
    Ok(folder)
}

fn base_folder() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let outside = vellum_sys::ns::outside_uid(user);
    if user == 0 && outside == Some(0) {
        return PathBuf::from("/run/vellum");
    }
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let outside = outside.unwrap_or(user);
    // Not every way to become a user (su, cron) sets the variable, and all of them must find the same folder.
    let usual = PathBuf::from(format!("/run/user/{outside}"));
    let usable = |folder: &PathBuf| folder.is_absolute() && belongs_to(folder, user);
    match given.filter(usable).or_else(|| Some(usual).filter(usable)) {
        Some(folder) => folder.join("vellum"),
        None => PathBuf::from(format!("/tmp/vellum-{outside}")),
    }
}

fn belongs_to(folder: &Path, user: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(folder).is_ok_and(|stat| stat.is_dir() && stat.uid() == user)
}

/// Whether a key can be the name of a file here: short, visible, of harmless characters.
pub(crate) fn is_file_name(key: &str) -> bool {
    (1..=200).contains(&key.len())
        && !key.starts_with('.')
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The names in a folder; those that are not UTF-8 are not the mounter's.
pub(crate) fn names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder.as_fd())? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_keys_are_file_names() {
        assert!(is_file_name("erofs-1a.img"));
        for bad in ["", ".", "..", ".x", "a/b", "a b", "ä"] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }
}
