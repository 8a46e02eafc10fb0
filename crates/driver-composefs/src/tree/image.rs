//! A tree as an EROFS image.
//!
//! The image of a layer's whole tree is a lower of overlayfs: a file whose content is an object has the attributes by which overlayfs finds that in a data-only lower
//! (`trusted.overlay.metacopy` with the fs-verity digest, `trusted.overlay.redirect` with the object's path), as composefs writes them.
//!
//! The image of what a layer itself brings ([`Raw::Yes`]) is mounted in the same way, and shows what the layer's own folder would hold on a driver that has one: attributes are
//! escaped once more, so that overlayfs shows what it would otherwise act upon, and a whiteout is an empty file with its mark.

use super::{Attr, Content, Dir, Entry, Leaf, What};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use vellum_archive::target::Node;
use vellum_archive::{XattrForm, attributes};
use vellum_erofs::{Inode, Layout, Xattr};

const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raw {
    /// Of a whole tree, to be used.
    No,
    /// Of a layer's own entries, to be looked at.
    Yes,
}

/// Writes the image.
///
/// # Errors
/// The tree holds what EROFS cannot; writing.
pub(crate) fn build(root: &Arc<Dir>, raw: Raw, out: &mut dyn Write) -> io::Result<()> {
    let numbered = Numbered::of(root, raw);
    let layout = Layout::of(&numbered).map_err(io::Error::other)?;
    layout.write(&numbered, out)
}

enum Item<'a> {
    Dir { dir: &'a Dir, parent: usize, entries: Vec<(&'a [u8], usize)> },
    Leaf { leaf: &'a Leaf, links: u32 },
    Whiteout,
}

/// A tree whose inodes have numbers.
struct Numbered<'a> {
    items: Vec<Item<'a>>,
    raw: Raw,
}

impl<'a> Numbered<'a> {
    fn of(root: &'a Dir, raw: Raw) -> Self {
        let mut this = Self { items: Vec::new(), raw };
        let mut leaves = HashMap::new();
        this.add(root, 0, &mut leaves);
        this
    }

    fn add(&mut self, dir: &'a Dir, parent: usize, leaves: &mut HashMap<*const Leaf, usize>) -> usize {
        let number = self.items.len();
        self.items.push(Item::Dir { dir, parent, entries: Vec::new() });
        let mut numbers = Vec::with_capacity(dir.entries.len());
        for (name, entry) in &dir.entries {
            let inode = match entry {
                Entry::Dir(below) => self.add(below, number, leaves),
                Entry::Leaf(leaf) => match leaves.get(&Arc::as_ptr(leaf)) {
                    Some(known) => {
                        if let Item::Leaf { links, .. } = &mut self.items[*known] {
                            *links += 1;
                        }
                        *known
                    }
                    None => {
                        self.items.push(Item::Leaf { leaf, links: 1 });
                        leaves.insert(Arc::as_ptr(leaf), self.items.len() - 1);
                        self.items.len() - 1
                    }
                },
                Entry::Whiteout if self.raw == Raw::Yes => {
                    self.items.push(Item::Whiteout);
                    self.items.len() - 1
                }
                Entry::Whiteout => continue,
            };
            numbers.push((&name[..], inode));
        }
        self.items[number] = Item::Dir { dir, parent, entries: numbers };
        number
    }

    fn xattrs(&self, attr: &'a Attr) -> Vec<Xattr<'a>> {
        let name = |name: &'a [u8]| match self.raw {
            Raw::Yes => {
                attributes::escape_overlay(name, XattrForm::Trusted).map_or(Cow::Borrowed(name), Cow::Owned)
            }
            Raw::No => Cow::Borrowed(name),
        };
        attr.xattrs().iter().map(|(own, value)| (name(own), Cow::Borrowed(&value[..]))).collect()
    }

    fn mark(name: &'static str, value: &'static [u8]) -> Xattr<'a> {
        (Cow::Owned(format!("trusted.overlay.overlay.{name}").into_bytes()), Cow::Borrowed(value))
    }
}

impl vellum_erofs::Tree for Numbered<'_> {
    fn count(&self) -> usize {
        self.items.len()
    }

    fn inode(&self, number: usize) -> Inode<'_> {
        use vellum_erofs::Content as Kind;
        match &self.items[number] {
            Item::Dir { dir, entries, .. } => {
                let below =
                    entries.iter().filter(|(_, inode)| matches!(self.items[*inode], Item::Dir { .. }));
                let mut xattrs = self.xattrs(&dir.attr);
                if dir.opaque && self.raw == Raw::Yes {
                    xattrs.push(Self::mark("opaque", b"y"));
                }
                inode(&dir.attr, Kind::Dir, 2 + below.count() as u32, xattrs)
            }
            Item::Whiteout => {
                const NOTHING: &Attr = &Attr {
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    mtime: vellum_archive::target::Time { seconds: 0, nanoseconds: 0 },
                    xattrs: None,
                };
                inode(NOTHING, Kind::Inline(b""), 1, vec![Self::mark("whiteout", b"y")])
            }
            Item::Leaf { leaf, links } => {
                let mut xattrs = self.xattrs(&leaf.attr);
                let content = match &leaf.what {
                    What::File { content: Content::Inline(bytes), .. } => Kind::Inline(bytes),
                    What::File { size, content: Content::Object(digest) } => {
                        // struct ovl_metacopy: version, length of all of it, flags, algorithm (1: SHA-256), digest.
                        let metacopy = [&[0, 36, 0, 1], &digest.0[..]].concat();
                        xattrs.push((METACOPY.into(), metacopy.into()));
                        xattrs.push((REDIRECT.into(), format!("/{}", digest.path()).into_bytes().into()));
                        Kind::External(*size)
                    }
                    What::Symlink(text) => Kind::Symlink(text),
                    What::Node(Node::Char(major, minor)) => Kind::Char(*major, *minor),
                    What::Node(Node::Block(major, minor)) => Kind::Block(*major, *minor),
                    What::Node(Node::Fifo) => Kind::Fifo,
                    What::Node(Node::Socket) => Kind::Socket,
                };
                inode(&leaf.attr, content, *links, xattrs)
            }
        }
    }

    fn entries(&self, number: usize, each: &mut dyn FnMut(&[u8], usize)) {
        if let Item::Dir { entries, .. } = &self.items[number] {
            entries.iter().for_each(|(name, inode)| each(name, *inode));
        }
    }

    fn parent(&self, number: usize) -> usize {
        match &self.items[number] {
            Item::Dir { parent, .. } => *parent,
            _ => number,
        }
    }
}

fn inode<'a>(
    attr: &Attr,
    content: vellum_erofs::Content<'a>,
    links: u32,
    xattrs: Vec<Xattr<'a>>,
) -> Inode<'a> {
    Inode {
        content,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        seconds: attr.mtime.seconds,
        nanoseconds: attr.mtime.nanoseconds,
        links,
        xattrs,
    }
}
