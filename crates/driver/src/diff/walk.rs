//! The walk behind every diff: two trees side by side, or the layer's own folder beside the base.
//!
//! The stack is explicit and at most [`KEEP_OPEN`] levels of it hold descriptors; the others are opened again, from the root
//! and without following a link, when the walk comes back to them. A container can therefore build as deep a tree as it
//! likes. What disappears while it is looked at counts as not there.

use super::same::same;
use super::{Change, DiffEntry, DiffSink};
use crate::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use vellum_archive::target::LayerPath;
use vellum_archive::tree::{Form, Node, open_dir, read_dir};

/// How many levels keep their directories open.
const KEEP_OPEN: usize = 64;

/// What an entry of a layer's own folder stands for in the layer's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it hides what lies below.
    Hidden,
    /// Itself; a directory that hides all that lies below it.
    Own,
    /// A directory that is laid over those of the layers below: only the names in it can differ.
    Merged,
    /// Something whose content lies elsewhere too and is to be read in the view of the whole tree.
    InView,
}

/// A driver's knowledge of a layer's own folder, by which a diff visits only what can have changed.
pub trait Guide {
    /// What an entry stands for.
    ///
    /// # Errors
    /// The file system's.
    fn standing(&self, node: &Node<'_>) -> io::Result<Standing>;

    /// The root of the view of the layer's whole tree. Called only if an entry is [`Standing::InView`].
    ///
    /// # Errors
    /// It cannot be mounted.
    fn view(&self) -> Result<BorrowedFd<'_>>;
}

/// What a driver knows of the inodes that can differ between two whole trees of which one began as a copy of the other, inode numbers included.
pub trait Candidates {
    /// Whether the inode can differ from that of the same number and path in the base. A directory differs when a name in it was added, removed or changed its
    /// inode, or when it itself did.
    fn can_differ(&self, inode: u64) -> bool;

    /// The names in the directory, which itself cannot differ, below which something can; `None` if nothing can.
    fn on_the_way(&self, inode: u64) -> Option<Vec<OsString>>;

    /// Whether the directory is the root of another tree, of which nothing is known.
    fn is_foreign(&self, inode: u64) -> bool;
}

/// Tells the differences between a whole tree and its base, visiting only what can differ. The result is that of [`super::generic_diff`].
///
/// # Errors
/// The file system's, with the path; whatever the sink returns.
pub fn narrowed_diff(
    tree: BorrowedFd<'_>,
    base: BorrowedFd<'_>,
    candidates: &dyn Candidates,
    form: Form,
    sink: &mut dyn DiffSink,
) -> Result<()> {
    let candidates = Some(candidates);
    Walk { tree, base: Some(base), guide: None, candidates, form, sink, stack: Vec::new() }.run()
}

/// Tells the differences between two whole trees.
pub(super) fn full_diff(
    tree: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    form: Form,
    sink: &mut dyn DiffSink,
) -> Result<()> {
    Walk { tree, base, guide: None, candidates: None, form, sink, stack: Vec::new() }.run()
}

/// Tells the differences between a layer's tree and its base (or nothing) by walking the layer's own folder `own`. The result is
/// that of [`super::generic_diff`].
///
/// # Errors
/// The file system's, with the path; whatever the sink returns.
pub fn guided_diff(
    own: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    guide: &dyn Guide,
    form: Form,
    sink: &mut dyn DiffSink,
) -> Result<()> {
    Walk { tree: own, base, guide: Some(guide), candidates: None, form, sink, stack: Vec::new() }.run()
}

struct Walk<'a> {
    tree: BorrowedFd<'a>,
    base: Option<BorrowedFd<'a>>,
    guide: Option<&'a dyn Guide>,
    candidates: Option<&'a dyn Candidates>,
    /// How the base and whole trees are read; the own folder is read with `raw`.
    form: Form,
    sink: &'a mut dyn DiffSink,
    stack: Vec<Level>,
}

/// A directory that is being walked.
struct Level {
    path: LayerPath,
    stat: Stat,
    /// Read in the layer's own folder rather than in a whole tree.
    own: bool,
    /// Names that the folder does not have are the same as in the base.
    guided: bool,
    /// Only candidates are looked at.
    narrowed: bool,
    has_base: bool,
    tree: Option<OwnedFd>,
    /// The same directory in the view of the whole tree; only if `own` and needed.
    view: Option<OwnedFd>,
    base: Option<OwnedFd>,
    names: std::vec::IntoIter<Name>,
    told: bool,
}

struct Name {
    name: OsString,
    in_tree: bool,
    in_base: bool,
}

/// What the tree has under a name.
struct Now {
    stat: Stat,
    own: bool,
    guided: bool,
}

impl Walk<'_> {
    fn run(mut self) -> Result<()> {
        self.start()?;
        while let Some(level) = self.stack.last_mut() {
            match level.names.next() {
                Some(name) => self.visit(name)?,
                None => {
                    self.stack.pop();
                }
            }
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let root = LayerPath::root();
        let form = self.form_of(self.guide.is_some());
        let look = |dir, form| Node::at(dir, OsStr::new("."), form).map_err(failed("look at", &root));
        let now = look(self.tree, form)?;
        let differs = match self.base {
            Some(base) => !same(&now, &look(base, self.form)?).map_err(failed("compare", &root))?,
            None => true,
        };
        if differs {
            let change = if self.base.is_some() { Change::Modified } else { Change::Added };
            self.sink.entry(&DiffEntry { path: &root, change, node: Some(&now), itself: true })?;
        }
        let own = self.guide.is_some();
        let guided = match self.guide {
            Some(guide) => guide.standing(&now).map_err(failed("read", &root))? == Standing::Merged,
            None => false,
        };
        let stat = now.stat;
        self.push(root, Now { stat, own, guided }, self.base.is_some(), true)
    }

    fn form_of(&self, own: bool) -> Form {
        Form { raw: own, ..self.form }
    }

    fn visit(&mut self, name: Name) -> Result<()> {
        let top = self.stack.len() - 1;
        let path = self.stack[top].path.join(name.name.as_bytes()).map_err(|reason| {
            let path = &self.stack[top].path;
            Error::new(ErrorKind::Unsupported, format!("tell what is in {path}"), reason)
        })?;
        self.open_levels(top)?;
        let now = if name.in_tree { self.now(top, &name.name, &path)? } else { None };
        let before = match &self.stack[top].base {
            Some(base) if name.in_base => {
                stat_of(base.as_fd(), &name.name).map_err(failed("look at", &path))?
            }
            _ => None,
        };
        let Some(now) = now else {
            if before.is_some() {
                self.tell_parents()?;
                let entry = DiffEntry { path: &path, change: Change::Deleted, node: None, itself: true };
                self.sink.entry(&entry)?;
            }
            return Ok(());
        };
        if let (Some(candidates), Some(before), true) = (self.candidates, &before, self.stack[top].narrowed)
            && now.stat.st_ino == before.st_ino
            && !candidates.is_foreign(now.stat.st_ino)
            && !candidates.can_differ(now.stat.st_ino)
        {
            if is_dir(&now.stat) && candidates.on_the_way(now.stat.st_ino).is_some() {
                self.push(path, now, true, false)?;
            }
            return Ok(());
        }
        let change = match &before {
            None => Some(Change::Added),
            Some(before) if self.same(top, &name.name, &now, before).map_err(failed("compare", &path))? => {
                None
            }
            Some(_) => Some(Change::Modified),
        };
        if let Some(change) = change {
            self.tell_parents()?;
            self.tell(top, &path, &name.name, &now, change, true)?;
        }
        if is_dir(&now.stat) {
            self.push(path, now, before.as_ref().is_some_and(is_dir), change.is_some())?;
        }
        Ok(())
    }

    /// What the tree has under this name in the directory of level `at`.
    fn now(&mut self, at: usize, name: &OsStr, path: &LayerPath) -> Result<Option<Now>> {
        let level = &self.stack[at];
        let dir = level.tree.as_ref().map_or(self.tree, |dir| dir.as_fd());
        let Some(stat) = stat_of(dir, name).map_err(failed("look at", path))? else { return Ok(None) };
        let (Some(guide), true) = (self.guide, level.own) else {
            return Ok(Some(Now { stat, own: false, guided: false }));
        };
        let guided = level.guided;
        let node = Node { dir, name, stat, form: self.form_of(true) };
        match guide.standing(&node).map_err(failed("read", path))? {
            Standing::Hidden => Ok(None),
            Standing::Own => Ok(Some(Now { stat, own: true, guided: false })),
            // In a directory that hides what lies below it nothing is merged.
            Standing::Merged => Ok(Some(Now { stat, own: true, guided })),
            Standing::InView => {
                self.open_view(at)?;
                let view = self.stack[at].view.as_ref().map_or(self.tree, |dir| dir.as_fd());
                let stat = stat_of(view, name).map_err(failed("look at", path))?;
                Ok(stat.map(|stat| Now { stat, own: false, guided: false }))
            }
        }
    }

    fn same(&self, at: usize, name: &OsStr, now: &Now, before: &Stat) -> io::Result<bool> {
        let level = &self.stack[at];
        let dir = level.base.as_ref().map_or(self.tree, |dir| dir.as_fd());
        same(&self.node(at, name, now), &Node { dir, name, stat: *before, form: self.form })
    }

    /// An entry of the directory of level `at`, which is open.
    fn node<'n>(&'n self, at: usize, name: &'n OsStr, now: &Now) -> Node<'n> {
        let level = &self.stack[at];
        let dir = if level.own && !now.own { &level.view } else { &level.tree };
        let dir = dir.as_ref().map_or(self.tree, |dir| dir.as_fd());
        Node { dir, name, stat: now.stat, form: self.form_of(now.own) }
    }

    fn tell(
        &mut self,
        at: usize,
        path: &LayerPath,
        name: &OsStr,
        now: &Now,
        change: Change,
        itself: bool,
    ) -> Result<()> {
        let level = &self.stack[at];
        let dir = if level.own && !now.own { &level.view } else { &level.tree };
        let dir = dir.as_ref().map_or(self.tree, |dir| dir.as_fd());
        let node = Node { dir, name, stat: now.stat, form: Form { raw: now.own, ..self.form } };
        self.sink.entry(&DiffEntry { path, change, node: Some(&node), itself })
    }

    /// Tells the directories on the way that have not been told.
    fn tell_parents(&mut self) -> Result<()> {
        let Some(first) = self.stack.iter().rposition(|level| level.told).map(|told| told + 1) else {
            return Ok(());
        };
        for at in first..self.stack.len() {
            let level = &self.stack[at];
            let now = Now { stat: level.stat, own: level.own, guided: level.guided };
            let path = level.path.clone();
            self.open_levels(at - 1)?;
            if self.stack[at - 1].own && !now.own {
                self.open_view(at - 1)?;
            }
            let name = path.split().map(|(_, name)| OsStr::from_bytes(name).to_owned()).unwrap_or_default();
            self.tell(at - 1, &path, &name, &now, Change::Modified, false)?;
            self.stack[at].told = true;
            self.close_far(at - 1);
        }
        Ok(())
    }

    fn push(&mut self, path: LayerPath, now: Now, has_base: bool, told: bool) -> Result<()> {
        let mut level = Level {
            path,
            stat: now.stat,
            own: now.own,
            guided: now.guided && has_base,
            narrowed: self.is_narrowed(&now.stat) && has_base,
            has_base,
            tree: None,
            view: None,
            base: None,
            names: Vec::new().into_iter(),
            told,
        };
        if let Some((_, name)) = level.path.split() {
            let at = self.stack.len() - 1;
            let name = OsStr::from_bytes(name);
            let gone = |result: io::Result<OwnedFd>| match result {
                Err(error) if is_gone(&error) => Ok(None),
                other => other.map(Some),
            };
            let node = self.node(at, name, &now);
            level.tree = gone(open_dir(node.dir, name)).map_err(failed("open", &level.path))?;
            if let (Some(base), true) = (&self.stack[at].base, has_base) {
                level.base = gone(open_dir(base.as_fd(), name)).map_err(failed("open", &level.path))?;
            }
            if level.tree.is_none() {
                return Ok(());
            }
        } else {
            let dot = OsStr::new(".");
            level.tree = Some(open_dir(self.tree, dot).map_err(failed("open", &level.path))?);
            level.base =
                self.base.map(|base| open_dir(base, dot)).transpose().map_err(failed("open", &level.path))?;
        }
        let names = match self.candidates {
            Some(candidates) if level.narrowed && !candidates.can_differ(level.stat.st_ino) => {
                let names = candidates.on_the_way(level.stat.st_ino).unwrap_or_default();
                Ok(names.into_iter().map(|name| Name { name, in_tree: true, in_base: true }).collect())
            }
            _ => names(&level),
        };
        level.names = names.map_err(failed("list", &level.path))?.into_iter();
        if level.names.len() > 0 {
            self.stack.push(level);
            if let Some(far) = self.stack.len().checked_sub(KEEP_OPEN + 1) {
                self.close_far(far);
            }
        }
        Ok(())
    }

    /// Whether candidates are known for what is in the directory.
    fn is_narrowed(&self, stat: &Stat) -> bool {
        let above = self.stack.last().is_none_or(|level| level.narrowed);
        let foreign = |c: &dyn Candidates| !self.stack.is_empty() && c.is_foreign(stat.st_ino);
        self.candidates.is_some_and(|candidates| above && !foreign(candidates))
    }

    fn close_far(&mut self, at: usize) {
        if at + KEEP_OPEN < self.stack.len() {
            let level = &mut self.stack[at];
            (level.tree, level.view, level.base) = (None, None, None);
        }
    }

    /// Opens again what [`Walk::close_far`] closed.
    fn open_levels(&mut self, at: usize) -> Result<()> {
        let level = &self.stack[at];
        if level.tree.is_some() {
            return Ok(());
        }
        let root = match self.guide {
            Some(guide) if !level.own => guide.view()?,
            _ => self.tree,
        };
        let tree = open_beneath(root, &level.path).map_err(failed("open", &level.path))?;
        let base = match self.base {
            Some(base) if level.has_base => {
                Some(open_beneath(base, &level.path).map_err(failed("open", &level.path))?)
            }
            _ => None,
        };
        let level = &mut self.stack[at];
        (level.tree, level.base) = (Some(tree), base);
        Ok(())
    }

    fn open_view(&mut self, at: usize) -> Result<()> {
        let level = &self.stack[at];
        if let (None, Some(guide)) = (&level.view, self.guide) {
            let view = open_beneath(guide.view()?, &level.path).map_err(failed("open", &level.path))?;
            self.stack[at].view = Some(view);
        }
        Ok(())
    }
}

/// The names to look at, in order: those of both directories, or those of the guide's.
fn names(level: &Level) -> io::Result<Vec<Name>> {
    let list = |dir: &Option<OwnedFd>| match dir {
        Some(dir) => read_dir(dir.as_fd()),
        None => Ok(Vec::new()),
    };
    let tree = list(&level.tree)?;
    if level.guided || level.base.is_none() {
        let in_base = level.base.is_some();
        return Ok(tree.into_iter().map(|name| Name { name, in_tree: true, in_base }).collect());
    }
    let mut merged = Vec::with_capacity(tree.len());
    let (mut tree, mut base) = (tree.into_iter().peekable(), list(&level.base)?.into_iter().peekable());
    loop {
        let order = match (tree.peek(), base.peek()) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Ok(merged),
        };
        let a = if order == Ordering::Greater { None } else { tree.next() };
        let b = if order == Ordering::Less { None } else { base.next() };
        let (in_tree, in_base) = (a.is_some(), b.is_some());
        merged.extend(a.or(b).map(|name| Name { name, in_tree, in_base }));
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

fn stat_of(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_beneath(root: BorrowedFd<'_>, path: &LayerPath) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path.as_path(), flags, Mode::empty(), resolve)?)
}

fn failed<E: Into<io::Error>>(operation: &'static str, path: &LayerPath) -> impl FnOnce(E) -> Error {
    move |error| Error::system(format!("{operation} {path}"), error)
}
