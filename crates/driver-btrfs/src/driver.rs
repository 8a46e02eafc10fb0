//! The trait's methods.

use crate::changes::{self, Changes};
use crate::limit;
use crate::room::{self, Outcome, with_room};
use crate::subvolume;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::target::{Joints, Target, Usage};
use vellum_archive::tree::{self, Form};
use vellum_driver::home::{self, Home, Record};
use vellum_driver::{
    Ability, Capabilities, Changed, CreateSpec, DiffSink, Driver, DriverConfig, Error, ErrorKind, Kind,
    LayerInfo, MountOptions, MountPlan, Result, Support, Views, generic_diff, narrowed_diff,
};
use vellum_sys::btrfs;
use vellum_sys::file::open_folder;
use vellum_sys::fsinfo::FileSystem;
use vellum_types::{LayerId, Size};

const TREE: &str = "tree";
const SINCE: &str = "since";
const SIZE: &str = "size";
const RECORD: &str = "info";
/// There is no limit but the caller's patience.
const NO_LIMIT: u64 = LayerId::MAX as u64;

/// The btrfs driver. See the crate's documentation.
#[derive(Debug)]
pub struct Btrfs {
    home: Home,
    config: DriverConfig,
    capabilities: Capabilities,
}

impl Btrfs {
    /// Opens, and makes if need be, the driver's home.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: it is not on btrfs; the file system's.
    pub fn open(path: &Path, config: DriverConfig) -> Result<Self> {
        let home = Home::open(path, "btrfs", RECORD)?;
        let on = FileSystem::of(home.dir()).map_err(|error| Error::system("look at the home", error))?;
        if on.name != "btrfs" {
            let reason = format!("{} is on {}", path.display(), on.name);
            return Err(Error::new(ErrorKind::Unsupported, "use the driver btrfs", reason)
                .hint("put the store on a btrfs file system"));
        }
        room::keep_reserve(home.dir());
        Ok(Self { home, config, capabilities: capabilities() })
    }

    /// Makes the layer's tree: a snapshot, or an empty subvolume. `since` when it is of a layer with the same parent.
    fn make_tree(
        &self,
        id: LayerId,
        folder: &OwnedFd,
        source: Option<LayerId>,
        since: Option<u64>,
    ) -> Result<()> {
        let failed = |error: std::io::Error| Error::system("make the subvolume", error).layer(id);
        let name = OsStr::new(TREE);
        match source {
            Some(source) => btrfs::snapshot(self.home.open_part(source, TREE)?, folder, name),
            None => btrfs::create(folder, name),
        }
        .map_err(failed)?;
        let made = tree::open_dir(folder.as_fd(), name).map_err(failed)?;
        if source.is_none() {
            rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)).map_err(|error| failed(error.into()))?;
        }
        let since = match since {
            Some(since) => since,
            None => first_own_generation(&made, source.is_some()).map_err(failed)?,
        };
        self.write_since(folder, since).map_err(failed)
    }

    /// Makes the tree of `to`, which is to be a copy of `from`.
    fn make_copy(&self, from: LayerId, to: LayerId, folder: &OwnedFd, since: Option<u64>) -> Result<()> {
        self.make_tree(to, folder, Some(from), since)?;
        let (source, copy) = (self.home.open_part(from, TREE)?, self.home.open_part(to, TREE)?);
        subvolume::fill(source.as_fd(), copy.as_fd()).map_err(|error| error.layer(to))?;
        if since.is_none() {
            let gone = rustix::fs::unlinkat(folder, SINCE, AtFlags::empty());
            gone.map_err(|error| Error::system("copy", error).layer(to))?;
        }
        if let Some(size) = self.number(from, SIZE)? {
            write_number(folder, SIZE, size)
                .and_then(|()| limit::share(self.home.dir(), source.as_fd(), copy.as_fd()))
                .map_err(|error| Error::system("limit the copy's size", error).layer(to))?;
        }
        Ok(())
    }

    fn write_since(&self, folder: &OwnedFd, since: u64) -> std::io::Result<()> {
        write_number(folder, SINCE, since)
    }

    /// From which generation on the layer differs from its parent; `None` where that is not known: a power cut took it, it rotted,
    /// or the tree was brought here from another file system, whose generations are others.
    fn since(&self, id: LayerId) -> Result<Option<u64>> {
        let Some(since) = self.number(id, SINCE)? else { return Ok(None) };
        let tree = self.home.open_part(id, TREE)?;
        let made =
            btrfs::info(&tree).map_err(|error| Error::system("read when it was made", error).layer(id))?.made;
        // One that is too early only costs time; one that is too late would hide changes.
        Ok((since <= made + 1).then_some(since))
    }

    /// The number in a file of the layer; `None` where there is none that is sound.
    fn number(&self, id: LayerId, name: &str) -> Result<Option<u64>> {
        let Some(folder) = self.home.folder(id)? else { return Ok(None) };
        read_number(&folder, name).map_err(|error| Error::system(format!("read {name}"), error).layer(id))
    }

    /// Deletes the tree in a layer's folder, wherever that is now.
    fn delete_tree(&self, folder: &OwnedFd) -> Result<()> {
        let failed = |error| Error::system("raise the size limit for the deletion", error);
        let name = OsStr::new(TREE);
        let loosened = match (read_number(folder, SIZE), tree::open_dir(folder.as_fd(), name)) {
            (Ok(Some(size)), Ok(tree)) => {
                Some(limit::loosen(self.home.dir(), tree.as_fd(), size).map_err(failed)?)
            }
            _ => None,
        };
        let deleted = subvolume::delete(folder.as_fd(), name);
        if let Some(loosened) = loosened {
            limit::tighten(self.home.dir(), &loosened).map_err(failed)?;
        }
        deleted
    }

    /// Limits what may be written to a new layer.
    fn limit(&self, id: LayerId, folder: &OwnedFd, size: Size) -> Result<()> {
        let failed = |error| Error::system("limit the size", error).layer(id);
        write_number(folder, SIZE, size.bytes()).map_err(failed)?;
        let tree = self.home.open_part(id, TREE)?;
        limit::impose(self.home.dir(), tree.as_fd(), size.bytes()).map_err(failed)
    }

    /// Says when the limit that the layer was made with is not kept.
    fn check_limit(&self, id: LayerId, record: &Record, tree: &OwnedFd) -> Result<Option<String>> {
        let Some(size) = self.number(id, SIZE)?.filter(|_| record.kind == Kind::Active) else {
            return Ok(None);
        };
        let limited = limit::of(tree.as_fd())
            .map_err(|error| Error::system("look at the size limit", error).layer(id))?;
        Ok(limited.is_none().then(|| {
            format!("its size limit of {size} bytes is not kept: somebody switched quotas off, or took its quota group away")
        }))
    }

    /// Takes back what could not be made.
    fn take_back(&self, id: LayerId) {
        if let Ok(Some(folder)) = self.home.folder(id) {
            let _ = subvolume::delete(folder.as_fd(), OsStr::new(TREE));
        }
        self.home.take_back(id);
    }

    fn record_of(&self, spec: &CreateSpec<'_>) -> Result<Record> {
        let mut chain = self.home.below("create", spec.parent, NO_LIMIT)?.chain;
        chain.truncate(1);
        let kind = if spec.view { Kind::View } else { Kind::Active };
        Ok(Record { kind, chain, hidden: 0, nested: false })
    }

    /// Whose `tree` the layer's tree is.
    fn tree_of(&self, id: LayerId, record: &Record) -> LayerId {
        match record.kind {
            Kind::View => record.chain.first().copied().unwrap_or(id),
            Kind::Active | Kind::Committed => id,
        }
    }
}

/// The generation from which on what is written to a new tree is its own. A snapshot is made while a transaction is committed, so all that is of that
/// generation is the parent's, and the first change comes in the next.
fn first_own_generation(tree: &OwnedFd, is_snapshot: bool) -> std::io::Result<u64> {
    Ok(if is_snapshot { btrfs::info(tree)?.made + 1 } else { 0 })
}

fn write_number(folder: &OwnedFd, name: &str, number: u64) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?;
    std::fs::File::from(file).write_all(format!("{number} {number}\n").as_bytes())
}

/// `None` where there is no such file, or none that is sound.
fn read_number(folder: &OwnedFd, name: &str) -> std::io::Result<Option<u64>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut text = Vec::new();
    match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file).take(64).read_to_end(&mut text)?,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(parse_number(&text))
}

/// What a file of [`write_number`] says, if nothing is wrong with it: the number stands there twice.
fn parse_number(text: &[u8]) -> Option<u64> {
    let (one, other) = std::str::from_utf8(text).ok()?.strip_suffix('\n')?.split_once(' ')?;
    (one == other).then(|| one.parse().ok())?
}

fn capabilities() -> Capabilities {
    let whole = "every layer is a whole tree, whose blocks are shared";
    Capabilities::new()
        .with(Ability::InstantCreate, Support::Yes, "a snapshot costs the same whatever the tree's size")
        .with(Ability::NativeDiff, Support::Yes, "changes are read off the file system's trees")
        .with(Ability::Quota, Support::Yes, "quotas of btrfs, switched on by the first layer with a size")
        .with(Ability::Reflink, Support::Yes, "btrfs shares blocks")
        .with(Ability::Rootless, Support::No, "subvolumes are searched with privileges of the host")
        .with(Ability::MaxLayers, Support::Limit(NO_LIMIT), "a mount is one subvolume however long the chain")
        .with(Ability::SharesPageCache, Support::No, "each snapshot has inodes of its own")
        .with(Ability::StoresFilesOnce, Support::No, "each layer has files of its own")
        .with(Ability::ParallelUnpack, Support::No, "a layer's tree begins as a snapshot of its parent's")
        .with(Ability::ClassicMounts, Support::Yes, "a tree is one bind mount")
        .with(Ability::MetadataOnlyCopyUp, Support::Yes, whole)
        .with(Ability::DirectoryRename, Support::Yes, whole)
        .with(Ability::AclOfLowerFile, Support::Yes, whole)
        .with(Ability::Volatile, Support::No, "a bind mount has no such option")
        .with(Ability::NestedWhiteouts, Support::Yes, "the device 0:0 is a node like others")
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    fn config(&self) -> DriverConfig {
        self.config
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        let backing =
            FileSystem::of(self.home.dir()).map_err(|error| Error::system("look at the home", error))?;
        let mut facts = vec![
            ("Backing Filesystem".into(), backing.name.into()),
            ("Supports reflink".into(), self.capabilities.has(Ability::Reflink).to_string()),
        ];
        let failed = |error| Error::system("look how the devices are set aside", error);
        facts.extend(room::status(self.home.dir()).map_err(failed)?);
        facts.push(("Quotas".to_owned(), limit::status(self.home.dir()).map_err(failed)?));
        Ok(facts)
    }

    fn create(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        let size = spec.size("btrfs", id)?;
        let record = self.record_of(spec)?;
        if spec.view && spec.parent.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "create a view", "a view has a parent").layer(id));
        }
        with_room(self.home.dir(), || {
            let folder = self.home.make(id)?;
            let made = if spec.view { Ok(()) } else { self.make_tree(id, &folder, spec.parent, None) };
            let limited = made.and_then(|()| size.map_or(Ok(()), |size| self.limit(id, &folder, size)));
            limited.and_then(|()| self.home.write_record(id, &record)).inspect_err(|_| self.take_back(id))
        })
    }

    fn complete(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<Changed> {
        let Some(folder) = self.home.folder(id)? else {
            self.create(id, spec)?;
            return Ok(Changed::Yes);
        };
        let record = self.record_of(spec)?;
        let mut changed = Changed::No;
        if !spec.view && self.home.open_part(id, TREE).is_err() {
            // What is of another tree does not count for this one.
            match rustix::fs::unlinkat(&folder, SINCE, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::system("complete", error).layer(id)),
            }
            self.make_tree(id, &folder, spec.parent, None)?;
            changed = Changed::Yes;
        }
        if !spec.view && self.since(id)?.is_none() {
            let failed = |error: std::io::Error| Error::system("complete", error).layer(id);
            let tree = self.home.open_part(id, TREE)?;
            let since = first_own_generation(&tree, spec.parent.is_some()).map_err(failed)?;
            self.write_since(&folder, since).map_err(failed)?;
            changed = Changed::Yes;
        }
        if !matches!(self.home.record(id), Ok(Some(_))) {
            self.home.write_record(id, &record)?;
            changed = Changed::Yes;
        }
        Ok(changed)
    }

    fn target(&self, id: LayerId) -> Result<Box<dyn Target>> {
        self.home.active("unpack", id)?;
        room::before_work(self.home.dir());
        let options = FolderOptions {
            style: Style::Apply,
            xattrs: self.config.xattrs,
            rootless: self.config.rootless,
            nested: false,
        };
        let target = FolderTarget::new(self.home.open_part(id, TREE)?, options)
            .map_err(|error| Error::system("unpack", error).layer(id))?;
        let since = self.since(id)?.unwrap_or(0);
        // The commit that follows brings it to the disk as well, and has little to do then.
        Ok(Box::new(target.measured_by(Box::new(move |tree| {
            btrfs::sync(tree)?;
            changes::usage_since(tree, since)
        }))))
    }

    fn commit(&self, id: LayerId, parent: Option<LayerId>, joints: &Joints) -> Result<Changed> {
        let Some(record) = self.home.to_commit(id, parent, false)? else { return Ok(Changed::No) };
        self.home.below("commit", parent, NO_LIMIT)?;
        if let Some((link, existing)) = joints.links.first() {
            let reason = format!("{link} links to {existing}, and no layer below has that file");
            return Err(Error::new(ErrorKind::Invalid, "commit", reason).layer(id));
        }
        let tree = self.home.open_part(id, TREE)?;
        let record = Record { kind: Kind::Committed, ..record };
        let failed = |error: std::io::Error| Error::system("commit", error).layer(id);
        let is_limited = self.number(id, SIZE)?.is_some();
        if is_limited {
            // Before anything is written: it may be full up to the limit.
            limit::lift(self.home.dir(), tree.as_fd()).map_err(failed)?;
        }
        with_room(self.home.dir(), || {
            subvolume::flatten(tree.as_fd()).map_err(|error| error.layer(id))?;
            btrfs::set_read_only(&tree, true).map_err(failed)?;
            self.home.write_record(id, &record)
        })?;
        if let (true, Some(folder)) = (is_limited, self.home.folder(id)?) {
            rustix::fs::unlinkat(&folder, SIZE, AtFlags::empty()).map_err(|error| failed(error.into()))?;
        }
        Ok(Changed::Yes)
    }

    fn copy(&self, from: LayerId, to: LayerId) -> Result<()> {
        let record = self.home.active("copy", from)?;
        let since = self.since(from)?;
        with_room(self.home.dir(), || {
            let folder = self.home.make(to)?;
            let copied = self.make_copy(from, to, &folder, since);
            copied.and_then(|()| self.home.write_record(to, &record)).inspect_err(|_| self.take_back(to))
        })
    }

    fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed> {
        match self.home.remove(id, trash) {
            // A disk too full for a new name: the subvolume itself goes here and now, and makes room.
            Err(error) if error.kind != ErrorKind::InUse => {
                let Some(folder) = self.home.folder(id)? else { return Err(error) };
                self.delete_tree(&folder).map_err(|error| error.layer(id))?;
                self.home.remove(id, trash)
            }
            result => result,
        }
    }

    fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed> {
        self.home.rename(from, to)
    }

    fn purge(&self, trashed: &Path) -> Result<Vec<LayerId>> {
        let failed = |error| Error::system(format!("delete {}", trashed.display()), error);
        let folder = match open_folder(rustix::fs::CWD, trashed) {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let counted = subvolume::counted(folder.as_fd(), OsStr::new(TREE)).map_err(failed)?;
        self.delete_tree(&folder)?;
        limit::forget(self.home.dir(), &counted).map_err(failed)?;
        home::purge(trashed).map(|()| Vec::new())
    }

    fn purges_only_the_folder(&self, trashed: &Path) -> bool {
        // What quotas keep goes after the kernel has deleted the last block, which is not to be waited for.
        let counted = open_folder(rustix::fs::CWD, trashed)
            .and_then(|folder| subvolume::counted(folder.as_fd(), OsStr::new(TREE)));
        counted.is_ok_and(|counted| counted.is_empty())
    }

    fn make_room(&self) -> Result<u64> {
        let home = self.home.dir();
        room::await_deletions(home)
            .map_err(|error| Error::system("wait for subvolumes to be deleted", error))?;
        match room::make(home, true) {
            Ok(Outcome::Freed(bytes)) => Ok(bytes),
            Ok(Outcome::NotThis | Outcome::Stuck) => Ok(0),
            Err(error) => Err(Error::system("balance chunks that are used little", error)),
        }
    }

    fn mounts(&self, id: LayerId, options: &MountOptions) -> Result<MountPlan> {
        let record = self.home.must("mount", id)?;
        if options.label.is_some() {
            let reason = "a bind mount has the labels of its files and no SELinux context of its own";
            return Err(Error::new(ErrorKind::Unsupported, "mount with a label", reason).layer(id));
        }
        let writable = record.kind == Kind::Active && !options.read_only;
        Ok(MountPlan::bind(self.home.part(self.tree_of(id, &record), TREE), !writable))
    }

    fn stat(&self, id: LayerId) -> Result<Option<LayerInfo>> {
        Ok(self.home.record(id)?.map(|record| record.info(id)))
    }

    fn walk(&self, visit: &mut dyn FnMut(LayerId, Result<LayerInfo>) -> Result<()>) -> Result<()> {
        self.home.walk(visit)
    }

    fn metadata(&self, id: LayerId) -> Result<Vec<(String, String)>> {
        let record = self.home.must("inspect", id)?;
        let of = self.tree_of(id, &record);
        let mut facts = vec![("Dir".to_owned(), self.home.part(of, TREE).display().to_string())];
        if of == id && self.number(id, SIZE)?.is_some() {
            let tree = self.home.open_part(id, TREE)?;
            let limited = limit::of(tree.as_fd())
                .map_err(|error| Error::system("look at the size limit", error).layer(id))?;
            if let Some(limited) = limited {
                facts.push(("Size limit".to_owned(), limited.most.to_string()));
                facts.push(("Size counted".to_owned(), limited.taken.to_string()));
            }
        }
        Ok(facts)
    }

    fn as_dyn(&self) -> &dyn Driver {
        self
    }

    fn diff(
        &self,
        id: LayerId,
        base: Option<LayerId>,
        views: &dyn Views,
        sink: &mut dyn DiffSink,
    ) -> Result<()> {
        let record = self.home.must("diff", id)?;
        let parent = base.filter(|base| record.chain.first() == Some(base) && record.kind != Kind::View);
        let (Some(parent), Some(since)) = (parent, self.since(id)?) else {
            return generic_diff(self, id, base, views, sink);
        };
        let (own, base) = (self.home.open_part(id, TREE)?, self.home.open_part(parent, TREE)?);
        let changes = Changes::since(own.as_fd(), since)
            .map_err(|error| Error::system("read off what changed", error).layer(id))?;
        let form = Form { xattrs: self.config.xattrs, rootless: self.config.rootless, raw: false };
        narrowed_diff(own.as_fd(), base.as_fd(), &changes, form, sink).map_err(|error| error.layer(id))
    }

    fn usage(&self, id: LayerId) -> Result<Usage> {
        if self.home.must("measure", id)?.kind == Kind::View {
            return Ok(Usage::default());
        }
        let tree = self.home.open_part(id, TREE)?;
        let since = self.since(id)?.unwrap_or(0);
        let measured = || {
            btrfs::sync(&tree)?;
            let mut usage = changes::usage_since(tree.as_fd(), since)?;
            for inner in subvolume::roots_inside(tree.as_fd())? {
                let own = changes::usage_since(inner.as_fd(), 0)?;
                usage = Usage { bytes: usage.bytes + own.bytes, inodes: usage.inodes + own.inodes };
            }
            Ok(usage)
        };
        measured().map_err(|error: std::io::Error| Error::system("measure", error).layer(id))
    }

    fn usage_of_new(&self, id: LayerId) -> Result<Usage> {
        let tree = self.home.open_part(id, TREE)?;
        let since = self.since(id)?.unwrap_or(0);
        changes::usage_since(tree.as_fd(), since).map_err(|error| Error::system("measure", error).layer(id))
    }

    fn sync(&self, id: LayerId) -> Result<()> {
        if self.home.must("sync", id)?.kind == Kind::View {
            return self.home.sync(id);
        }
        // One transaction of the file system has the subvolume and the files beside it.
        let tree = self.home.open_part(id, TREE)?;
        btrfs::sync(&tree).map_err(|error| Error::system("sync", error).layer(id))
    }

    fn check(&self, id: LayerId) -> Result<Vec<String>> {
        let record = self.home.must("check", id)?;
        let mut findings = Vec::new();
        if let Some(parent) = record.chain.first() {
            match self.home.record(*parent) {
                Ok(Some(below)) if below.kind == Kind::Committed => {}
                Ok(Some(_)) => findings.push(format!("its parent {parent} is not committed")),
                Ok(None) => findings.push(format!("its parent {parent} is missing")),
                Err(error) if error.kind == ErrorKind::Damaged => {
                    findings.push(format!("its parent {parent} is damaged"));
                }
                Err(error) => return Err(error),
            }
        }
        match self.home.open_part(self.tree_of(id, &record), TREE) {
            Ok(tree) => match btrfs::is_read_only(&tree) {
                Err(_) => findings.push("its tree is no subvolume".into()),
                Ok(false) if record.kind == Kind::Committed => {
                    findings.push("its subvolume can be written, and it is committed".into());
                }
                Ok(_) => findings.extend(self.check_limit(id, &record, &tree)?),
            },
            Err(error) if matches!(error.kind, ErrorKind::Damaged | ErrorKind::NotFound) => {
                findings.push("its tree is missing".into());
            }
            Err(error) => return Err(error),
        }
        Ok(findings)
    }
}
