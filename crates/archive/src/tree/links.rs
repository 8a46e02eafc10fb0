//! Files of several names, in a tree that is being copied.

use super::Node;
use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Keeps a further name of each such file in a folder at the copy's root, under its number, until the copy is done: paths would have
/// to be walked for every link, and are of any length.
pub(super) struct Links<'a> {
    root: BorrowedFd<'a>,
    folder: Option<(String, OwnedFd)>,
    /// By device and inode in the source.
    numbers: HashMap<(u64, u64), u64>,
}

impl<'a> Links<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, folder: None, numbers: HashMap::new() }
    }

    /// Makes the entry a link, if another name of its file was copied before.
    pub(super) fn linked(&mut self, node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
        if node.stat.st_nlink < 2 {
            return Ok(false);
        }
        let Some(number) = self.numbers.get(&identity(node)) else { return Ok(false) };
        let Some((_, folder)) = &self.folder else { return Ok(false) };
        let number = number.to_string();
        match rustix::fs::linkat(folder, &number, to, node.name, AtFlags::empty()) {
            // As many names as the file system gives a file: the one here was one more than the source has.
            Err(Errno::MLINK) => {
                rustix::fs::renameat_with(folder, &number, to, node.name, RenameFlags::NOREPLACE)?;
            }
            other => other?,
        }
        Ok(true)
    }

    /// Notes the entry, which was just copied, if there are more names of its file.
    pub(super) fn first(&mut self, node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        if node.stat.st_nlink < 2 {
            return Ok(());
        }
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => {
                let name = format!(".vellum-links-{}", vellum_sys::random::hex::<8>()?);
                rustix::fs::mkdirat(self.root, &name, Mode::RWXU)?;
                let folder = super::open_dir(self.root, name.as_ref())?;
                (name, folder)
            }
        };
        let number = self.numbers.len() as u64;
        let linked = rustix::fs::linkat(to, node.name, &folder.1, number.to_string(), AtFlags::empty());
        self.folder = Some(folder);
        linked?;
        self.numbers.insert(identity(node), number);
        Ok(())
    }

    /// Takes the folder away: no more links will be made.
    pub(super) fn drop_folder(&mut self) -> io::Result<()> {
        match self.folder.take() {
            Some((name, _)) => super::remove(self.root, name.as_ref()).map_err(|error| error.source),
            None => Ok(()),
        }
    }
}

fn identity(node: &Node<'_>) -> (u64, u64) {
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    (node.stat.st_dev as u64, node.stat.st_ino as u64)
}
