//! What the entries of an upper mean, for a diff that walks only the upper.

use rustix::fs::FileType;
use rustix::io::Errno;
use std::cell::OnceCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use vellum_archive::XattrForm;
use vellum_archive::tree::Node;
use vellum_driver::{Guide, MountPlan, Result, Standing, View, Views};

/// Reads an upper; mounts the whole tree at the first entry that needs it.
pub struct UpperGuide<'a> {
    form: XattrForm,
    views: &'a dyn Views,
    plan: MountPlan,
    view: OnceCell<Box<dyn View>>,
}

impl<'a> UpperGuide<'a> {
    /// `plan`: of the whole tree, read-only.
    pub fn new(form: XattrForm, views: &'a dyn Views, plan: MountPlan) -> Self {
        Self { form, views, plan, view: OnceCell::new() }
    }
}

impl std::fmt::Debug for UpperGuide<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpperGuide").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Guide for UpperGuide<'_> {
    fn standing(&self, node: &Node<'_>) -> io::Result<Standing> {
        match node.file_type() {
            _ if node.is_whiteout() => Ok(Standing::Hidden),
            FileType::RegularFile if mark(node, self.form, "metacopy")?.is_some() => Ok(Standing::InView),
            FileType::Directory if node.is_opaque()? => Ok(Standing::Own),
            FileType::Directory if mark(node, self.form, "redirect")?.is_some() => Ok(Standing::InView),
            FileType::Directory => Ok(Standing::Merged),
            _ => Ok(Standing::Own),
        }
    }

    fn view(&self) -> Result<BorrowedFd<'_>> {
        if self.view.get().is_none() {
            let _ = self.view.set(self.views.view(&self.plan)?);
        }
        match self.view.get() {
            Some(view) => Ok(view.root()),
            None => Err(vellum_driver::Error::system("view the tree", io::Error::other("it is gone"))),
        }
    }
}

/// The whiteout of a nested overlay: an empty file with a mark, in a directory that says it has some.
///
/// # Errors
/// The file system's.
pub fn is_whiteout_file(node: &Node<'_>, form: XattrForm) -> io::Result<bool> {
    if node.stat.st_size != 0 || mark(node, form, "whiteout")?.is_none() {
        return Ok(false);
    }
    let dir = Node { name: OsStr::new("."), ..*node };
    Ok(mark(&dir, form, "opaque")?.as_deref() == Some(b"x"))
}

/// One of overlayfs's own attributes; `None` if the entry has none of this name.
///
/// # Errors
/// The file system's.
pub fn mark(node: &Node<'_>, form: XattrForm, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut path = format!("/proc/self/fd/{}/", node.dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(node.name.as_bytes());
    let name = [form.prefix(), name.as_bytes()].concat();
    // A redirect is at most PATH_MAX; the other marks are short.
    let mut value = vec![0; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
