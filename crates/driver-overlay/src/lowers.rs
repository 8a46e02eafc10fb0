//! Looking a path up in a chain of layers as overlayfs does, without mounting it.
//!
//! A directory of the tree is the list of the layers' directories that are merged there, nearest first. A name is looked for in each in turn:
//! a whiteout ends the search, a file ends it as the answer, a directory joins the list and ends it if it is opaque.
//! A redirect changes the name for the layers further down: a single name within the same directories, or, from
//! `/`, a path that is looked for anew from the roots. At most [`MAX_REDIRECTS`] are followed for one path.

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use vellum_archive::target::LayerPath;
use vellum_archive::tree::{Form, Node, open_dir};
use vellum_overlayfs::{is_whiteout_file, mark};

const MAX_REDIRECTS: u32 = 40;

/// The roots of a chain's layers, nearest first.
pub(crate) struct Lowers {
    roots: Vec<OwnedFd>,
    form: Form,
}

/// A directory of one layer: the layer's place in the chain, and the directory.
type Part = (usize, OwnedFd);

/// What a path is in the tree.
pub(crate) enum Found {
    /// A directory; the nearest layer's gives its meta.
    Dir(Vec<Part>),
    /// Anything else: its directory, its name there, and where its data are if those lie in another layer.
    Other { dir: OwnedFd, name: Vec<u8>, stat: Stat, data: Option<OwnedFd> },
}

impl Lowers {
    pub(crate) fn new(roots: Vec<OwnedFd>, form: Form) -> Self {
        Self { roots, form }
    }

    /// What the tree has at `path`; `None` if nothing.
    pub(crate) fn find(&self, path: &LayerPath) -> io::Result<Option<Found>> {
        self.find_from(path, 0, &mut 0)
    }

    /// The same without the nearest `skip` layers.
    fn find_from(&self, path: &LayerPath, skip: usize, redirects: &mut u32) -> io::Result<Option<Found>> {
        let mut parts = Vec::new();
        for (at, root) in self.roots.iter().enumerate().skip(skip) {
            parts.push((at, open_dir(root.as_fd(), OsStr::new("."))?));
            if self.marked(&parts, "opaque")?.as_deref() == Some(b"y") {
                break;
            }
        }
        let mut names = path.names().peekable();
        while let Some(name) = names.next() {
            match self.step(&parts, name, redirects)? {
                Some(Found::Dir(below)) => parts = below,
                other if names.peek().is_none() => return Ok(other),
                _ => return Ok(None),
            }
        }
        Ok(Some(Found::Dir(parts)))
    }

    /// A mark of the last directory of the list.
    fn marked(&self, parts: &[Part], name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some((_, dir)) = parts.last() else { return Ok(None) };
        mark(&Node::at(dir.as_fd(), OsStr::new("."), self.form)?, self.form.xattrs, name)
    }

    fn step(&self, parts: &[Part], name: &[u8], redirects: &mut u32) -> io::Result<Option<Found>> {
        let mut name = name.to_vec();
        let mut below: Vec<Part> = Vec::new();
        for (at, dir) in parts {
            let Some(node) = look(dir.as_fd(), OsStr::from_bytes(&name), self.form)? else { continue };
            if node.is_whiteout() || is_whiteout_file(&node, self.form.xattrs)? {
                break;
            }
            if node.file_type() != FileType::Directory {
                if below.is_empty() {
                    return self.other(*at, dir, &name, &node, parts, redirects).map(Some);
                }
                break;
            }
            below.push((*at, open_dir(dir.as_fd(), OsStr::from_bytes(&name))?));
            if self.marked(&below, "opaque")?.as_deref() == Some(b"y") {
                break;
            }
            if let Some(to) = self.marked(&below, "redirect")? {
                match redirected(&to, redirects)? {
                    Redirect::Name(other) => name = other,
                    Redirect::Path(path) => {
                        if let Some(Found::Dir(rest)) = self.find_from(&path, at + 1, redirects)? {
                            below.extend(rest);
                        }
                        break;
                    }
                }
            }
        }
        Ok(if below.is_empty() { None } else { Some(Found::Dir(below)) })
    }

    /// A file in the layer `at`, and where its data are.
    fn other(
        &self,
        at: usize,
        dir: &OwnedFd,
        name: &[u8],
        node: &Node<'_>,
        parts: &[Part],
        redirects: &mut u32,
    ) -> io::Result<Found> {
        let form = self.form.xattrs;
        let meta_only = node.file_type() == FileType::RegularFile && mark(node, form, "metacopy")?.is_some();
        let data = if meta_only {
            let found =
                match mark(node, form, "redirect")?.map(|to| redirected(&to, redirects)).transpose()? {
                    Some(Redirect::Path(path)) => self.find_from(&path, at + 1, redirects)?,
                    Some(Redirect::Name(name)) => self.step(&rest(parts, at)?, &name, redirects)?,
                    None => self.step(&rest(parts, at)?, name, redirects)?,
                };
            Some(match found {
                Some(Found::Other { data: Some(data), .. }) => data,
                Some(Found::Other { dir, name, stat, data: None })
                    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile =>
                {
                    Node { dir: dir.as_fd(), name: OsStr::from_bytes(&name), stat, form: self.form }
                        .open()?
                        .into()
                }
                _ => return Err(io::Error::other("the data that a metacopy file names are missing")),
            })
        } else {
            None
        };
        Ok(Found::Other { dir: dir.try_clone()?, name: name.to_vec(), stat: node.stat, data })
    }
}

/// The directories of the list that belong to layers below `at`.
fn rest(parts: &[Part], at: usize) -> io::Result<Vec<Part>> {
    parts.iter().filter(|(layer, _)| *layer > at).map(|(layer, dir)| Ok((*layer, dir.try_clone()?))).collect()
}

fn look<'a>(dir: BorrowedFd<'a>, name: &'a OsStr, form: Form) -> io::Result<Option<Node<'a>>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Node { dir, name, stat, form })),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

enum Redirect {
    Name(Vec<u8>),
    Path(LayerPath),
}

fn redirected(to: &[u8], redirects: &mut u32) -> io::Result<Redirect> {
    *redirects += 1;
    if *redirects > MAX_REDIRECTS {
        return Err(io::Error::other("too many redirects"));
    }
    let (absolute, text) = match to.strip_prefix(b"/") {
        Some(text) => (true, text),
        None => (false, to),
    };
    let path =
        LayerPath::new(text).map_err(|reason| io::Error::other(format!("a bad redirect: {reason}")))?;
    if absolute {
        Ok(Redirect::Path(path))
    } else if path.names().count() == 1 {
        Ok(Redirect::Name(text.to_vec()))
    } else {
        Err(io::Error::other("a redirect that is neither a name nor a path from the root"))
    }
}
