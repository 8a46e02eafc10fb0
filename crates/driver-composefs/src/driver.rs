//! The trait's methods.

use crate::objects::{self, Intake};
use crate::parts::{IMAGE, LOCK, Parts, TAKING, TREE, UPPER, WORK, unlink};
use crate::probe::Mounts;
use crate::seal::Seal;
use crate::target::TreeTarget;
use crate::tree::{self, Dir};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vellum_archive::XattrForm;
use vellum_archive::target::{Joints, LayerPath, Target, Usage};
use vellum_archive::tree::{self as disk, CopyOptions, Form};
use vellum_driver::home::{self, Below, Home, Record};
use vellum_driver::{
    Ability, Capabilities, Changed, CreateSpec, DiffSink, Driver, DriverConfig, Error, ErrorKind, Kind,
    LayerInfo, MountOptions, MountPlan, Result, Support, View, Views, generic_diff, guided_diff,
};
use vellum_overlayfs::{Features, Limits, UpperGuide};
use vellum_sys::file::ensure_folder;
use vellum_sys::fsinfo::FileSystem;
use vellum_types::{LayerId, Size};

/// What the driver is called.
pub(crate) const NAME: &str = "composefs";
pub(crate) const NONE: &str = ".none";
const RECORD: &str = "info";
const NO_LIMIT: u64 = LayerId::MAX as u64;
const FORM: Form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: false };

/// The composefs driver. See the crate's documentation.
#[derive(Debug)]
pub struct Composefs {
    pub(crate) parts: Arc<Parts>,
    config: DriverConfig,
    pub(crate) limits: Limits,
    capabilities: Capabilities,
}

impl Composefs {
    /// Opens, and makes if need be, the driver's home.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: images or overlayfs do not work there, with the reason.
    pub fn open(path: &Path, config: DriverConfig) -> Result<Self> {
        let unsupported = |reason: String, hint: Option<String>| {
            let mut error = Error::new(ErrorKind::Unsupported, "use the driver composefs", reason);
            error.hint = hint;
            error
        };
        if config.rootless {
            let reason = "images are mounted with privileges of the host".to_owned();
            return Err(unsupported(reason, Some("run it as root, or use overlay".into())));
        }
        let home = Home::open(path, NAME, RECORD)?;
        let features = Features::of(home.dir(), path, config.xattrs)?;
        if let Some((reason, hint)) = features.refused {
            return Err(unsupported(reason, hint));
        }
        let failed = |error| Error::system(format!("probe images in {}", path.display()), error);
        let seal = Seal::of_home(home.dir(), path, &path.join(LOCK), config.verity).map_err(|error| {
            if error.kind() == io::ErrorKind::Unsupported {
                return unsupported(error.to_string(), Some("use the newer program".into()));
            }
            Error::system(format!("find out whether {} is sealed", path.display()), error)
        })?;
        let mounts = Mounts::of(home.dir(), path, seal).map_err(failed)?.map_err(|reason| match seal {
            Seal::Yes => unsupported(
                format!("its objects are sealed, and nothing here verifies them: {reason}"),
                Some(crate::factory::SEALED_HINT.into()),
            ),
            Seal::No => unsupported(reason, Some(crate::factory::HINT.into())),
        })?;
        let made =
            ensure_folder(home.dir(), NONE, 0o755).and_then(|_| objects::Objects::open(home.dir(), seal));
        let objects =
            made.map_err(|error| Error::system(format!("make the folders of {}", path.display()), error))?;
        let limits = Limits::of(home.dir(), config.rootless);
        let capabilities = capabilities(&features, mounts, limits);
        let parts = Arc::new(Parts::new(home, objects, features, mounts));
        Ok(Self { parts, config, limits, capabilities })
    }

    pub(crate) fn home(&self) -> &Home {
        &self.parts.home
    }

    fn make_parts(
        &self,
        id: LayerId,
        record: &Record,
        parent: Option<LayerId>,
        size: Option<Size>,
    ) -> Result<()> {
        let folder = self.home().make(id)?;
        let made = (|| {
            self.limits.impose(&folder, id, size)?;
            if record.kind == Kind::Active {
                let part = |name, mode| {
                    ensure_folder(&folder, name, mode)
                        .map_err(|error| Error::system("create", error).layer(id))
                };
                // What a container sees as its root: its mode is an image's unless one says otherwise.
                let (_, _) = (part(UPPER, 0o755)?, part(WORK, 0o700)?);
                self.like_parent(id, parent)?;
            }
            self.home().write_record(id, record)
        })();
        made.inspect_err(|_| self.take_back(id))
    }

    /// Makes a layer with this record a committed one.
    fn commit_on(&self, id: LayerId, record: Record, parent: Option<LayerId>, joints: &Joints) -> Result<()> {
        let Below { chain, nested: inherited, .. } = self.below("commit", parent)?;
        let lock = self.parts.taking(id)?;
        let mut intake = Intake::new(Arc::clone(&self.parts), id);
        let mut own = self.parts.gather(id, parent, &mut intake)?;
        intake.settle().map_err(|error| Error::system("take what was written", error).layer(id))?;
        // Taken after it was looked at, so that it can be changed in place.
        let base = parent.map(|parent| self.parts.flat(parent)).transpose()?.flatten();
        let before = Arc::clone(&own);
        self.join(id, &mut own, base.as_ref(), joints, inherited)?;
        let failed = |error| Error::system("commit", error).layer(id);
        let same = Arc::ptr_eq(&before, &own) || before == own;
        if !same || self.parts.tree_file(id).map_err(failed)?.is_none() || !self.is_untouched(id)? {
            let _ = self.parts.put_tree(id, &own, &intake.own).map_err(failed)?;
            // Files that have names elsewhere, too, have only those of this layer in it.
            own = self.parts.own_tree(id)?;
        }
        let folder = self.home().folder(id)?.ok_or_else(|| Error::not_found("commit", id))?;
        // Made of less than it is now.
        for gone in [TAKING, IMAGE] {
            unlink(folder.as_fd(), gone).map_err(failed)?;
        }
        drop((base, lock));
        for part in [UPPER, WORK] {
            disk::remove(folder.as_fd(), OsStr::new(part))?;
        }
        let nested = inherited || !joints.whiteouts.is_empty();
        self.home().write_record(id, &Record { kind: Kind::Committed, chain, nested, ..record })?;
        let base = parent.map(|parent| self.parts.flat_to_change(parent)).transpose()?.flatten();
        self.parts.remember(id, tree::flatten(base, &own));
        Ok(())
    }

    /// Takes back what could not be made.
    fn take_back(&self, id: LayerId) {
        // What keeps it is told when the layer is removed.
        let _ = self.limits.lift(self.home(), id);
        self.home().take_back(id);
    }

    /// A container's root has owner, mode and attributes of its image's.
    fn like_parent(&self, id: LayerId, parent: Option<LayerId>) -> Result<()> {
        let Some(parent) = parent else { return Ok(()) };
        let attr = self.parts.root_attr(parent)?;
        self.parts
            .dress_upper(id, &attr)
            .map_err(|error| Error::system("give the root the parent's attributes", error).layer(id))
    }

    fn record_of(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<Record> {
        if spec.view && spec.parent.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "create a view", "a view has a parent").layer(id));
        }
        let kind = if spec.view { Kind::View } else { Kind::Active };
        Ok(self.below("create", spec.parent)?.record(kind))
    }

    /// Just the parent: whoever needs the chain follows the records.
    fn below(&self, operation: &str, parent: Option<LayerId>) -> Result<Below> {
        let mut below = self.home().below(operation, parent, NO_LIMIT)?;
        below.chain.truncate(1);
        Ok(Below { hidden: 0, ..below })
    }

    /// Joins what a layer brings to its parent's tree.
    fn join(
        &self,
        id: LayerId,
        own: &mut Arc<Dir>,
        base: Option<&Arc<Dir>>,
        joints: &Joints,
        nested: bool,
    ) -> Result<()> {
        let own = Arc::make_mut(own);
        crate::joints::make(own, base, &joints.links).map_err(|error| error.layer(id))?;
        if let Some(base) = base {
            for path in joints.implied.iter().rev() {
                if let (Some(dir), Some(below)) = (own.dir_mut(path), base.dir(path)) {
                    dir.attr = below.attr.clone();
                }
            }
        }
        for path in &joints.whiteouts {
            if let Some(dir) = own.dir_mut(path) {
                tree::mark(&mut dir.attr, self.config.xattrs);
            }
        }
        if let (Some(base), true) = (base, nested) {
            tree::mark_merged(own, base, self.config.xattrs);
        }
        Ok(())
    }
}

fn capabilities(features: &Features, mounts: Mounts, limits: Limits) -> Capabilities {
    let support = |yes: bool| if yes { Support::Yes } else { Support::No };
    let (quota, why) = limits.support();
    Capabilities::new()
        .with(Ability::InstantCreate, Support::Yes, "a layer is an empty folder over its parent's image")
        .with(Ability::NativeDiff, Support::Yes, "the upper holds what changed; redirects and metacopy are followed")
        .with(Ability::Quota, quota, why)
        .with(
            Ability::Reflink,
            support(features.reflink),
            if features.reflink {
                "objects and uppers lie on one file system that shares blocks"
            } else {
                "the file system cannot share blocks: a first write copies the file whole"
            },
        )
        .with(Ability::Rootless, Support::No, "images are mounted with privileges of the host")
        .with(Ability::MaxLayers, Support::Limit(NO_LIMIT), "an image is one tree however many layers it is made of")
        .with(Ability::SharesPageCache, Support::Yes, "containers of all images read the same objects")
        .with(Ability::StoresFilesOnce, Support::Yes, "contents are objects, named by their digest")
        .with(Ability::ParallelUnpack, Support::Yes, "a layer's tree does not depend on its parent until it is joined")
        .with(
            Ability::ClassicMounts,
            Support::Yes,
            if mounts.without_metacopy {
                "an overlay over an image that is mounted before"
            } else {
                "a bind mount of an overlay that is mounted before: until Linux 6.16 overlayfs finds objects only with metacopy, and others would misread what that leaves in an upper"
            },
        )
        .with(Ability::MetadataOnlyCopyUp, Support::Yes, "metacopy, as probed")
        .with(Ability::DirectoryRename, support(features.rename_directory), "redirect_dir, as probed")
        .with(
            Ability::AclOfLowerFile,
            Support::No,
            "overlayfs asks the image's file system, which is read-only, whether it can change ACLs; once the file was changed in any other way it works",
        )
        .with(Ability::Volatile, support(features.volatile), "the mount option volatile, as probed")
        .with(
            Ability::NestedWhiteouts,
            support(features.nested),
            "the device 0:0 is kept as a file that an inner overlay takes for a whiteout",
        )
}

impl Driver for Composefs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        self.parts.home.path()
    }

    fn config(&self) -> DriverConfig {
        self.config
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        let backing =
            FileSystem::of(self.home().dir()).map_err(|error| Error::system("look at the home", error))?;
        let pair = |name: &str, value: String| (name.to_owned(), value);
        Ok(vec![
            pair("Backing Filesystem", backing.name.into()),
            pair("Supports d_type", self.parts.features.d_type.to_string()),
            pair("Supports reflink", self.parts.features.reflink.to_string()),
            pair("Images mounted", self.parts.mounts.source.text().into()),
            pair("Objects sealed (fs-verity)", (self.parts.objects.seal == Seal::Yes).to_string()),
            pair("Native Overlay Diff", "true".into()),
            pair("Nested whiteouts", self.parts.features.nested.to_string()),
        ])
    }

    fn create(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        let size = self.limits.wanted(spec, NAME, id)?;
        let record = self.record_of(id, spec)?;
        self.make_parts(id, &record, spec.parent, size)
    }

    fn complete(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<Changed> {
        let Some(folder) = self.home().folder(id)? else {
            self.create(id, spec)?;
            return Ok(Changed::Yes);
        };
        let record = self.record_of(id, spec)?;
        let failed = |error| Error::system("create", error).layer(id);
        let recorded = matches!(self.home().record(id), Ok(Some(_)));
        let mut changed = Changed::No;
        if record.kind == Kind::Active {
            for (part, mode) in [(UPPER, 0o755), (WORK, 0o700)] {
                let there = disk::open_dir(folder.as_fd(), OsStr::new(part)).is_ok();
                let dir = ensure_folder(&folder, part, mode).map_err(failed)?;
                // An empty root may have come without its attributes; one that was written to has those it should have.
                let bare = !there || (!recorded && disk::read_dir(dir.as_fd()).map_err(failed)?.is_empty());
                if bare && part == UPPER {
                    self.like_parent(id, spec.parent)?;
                }
                if !there {
                    changed = Changed::Yes;
                }
            }
        }
        if !recorded {
            self.home().write_record(id, &record)?;
            changed = Changed::Yes;
        }
        Ok(changed)
    }

    fn target(&self, id: LayerId) -> Result<Box<dyn Target>> {
        let record = self.home().active("unpack", id)?;
        let lock = self.parts.taking(id)?;
        let mut intake = Intake::new(Arc::clone(&self.parts), id);
        let written = self.parts.tree(id)?.is_some() || !self.is_untouched(id)?;
        let root = match written {
            true => self.parts.gather(id, record.chain.first().copied(), &mut intake)?,
            false => Arc::new(Dir::implied()),
        };
        Ok(Box::new(TreeTarget::new(Arc::clone(&self.parts), id, root, intake, lock)))
    }

    fn commit(&self, id: LayerId, parent: Option<LayerId>, joints: &Joints) -> Result<Changed> {
        let Some(record) = self.home().to_commit(id, parent, true)? else { return Ok(Changed::No) };
        // A layer that is full has no room for what a commit writes.
        let lifted = self.limits.lift(self.home(), id)?;
        match self.commit_on(id, record, parent, joints) {
            Ok(()) => Ok(Changed::Yes),
            Err(error) => {
                self.limits.restore(self.home(), lifted);
                Err(error)
            }
        }
    }

    fn copy(&self, from: LayerId, to: LayerId) -> Result<()> {
        let record = self.home().active("copy", from)?;
        let source = self.home().open_part(from, UPPER)?;
        let folder = self.home().make(to)?;
        let copied = (|| {
            let part = |name: &str| {
                ensure_folder(&folder, name, 0o700).map_err(|error| Error::system("copy", error).layer(to))
            };
            self.limits.share(self.home(), from, &folder, to)?;
            let (diff, _) = (part(UPPER)?, part(WORK)?);
            disk::copy(source.as_fd(), diff.as_fd(), CopyOptions::default())?;
            match rustix::fs::fremovexattr(&diff, "trusted.overlay.uuid") {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(Error::system("copy", error).layer(to)),
            }
            // No objects go while the copy does not list them yet.
            let _lock = self.parts.reading()?;
            if let Some(tree) = self.parts.tree(from)? {
                let _ = self
                    .parts
                    .put_tree(to, &tree, &BTreeSet::new())
                    .map_err(|error| Error::system("copy", error).layer(to))?;
            }
            self.home().write_record(to, &record)
        })();
        copied.inspect_err(|_| self.take_back(to))
    }

    fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed> {
        self.parts.forget(id);
        let _ = self.limits.lift(self.home(), id)?;
        self.home().remove(id, trash)
    }

    fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed> {
        let _alone = self.parts.collecting()?;
        for id in [from, to] {
            self.parts.forget(id);
        }
        let changed = self.home().rename(from, to)?;
        if changed == Changed::Yes
            && let Some(mut file) =
                self.parts.tree_file(to).map_err(|error| Error::system("rename", error).layer(to))?
        {
            // Objects say who made them.
            let mut restamp = || -> io::Result<()> {
                for digest in tree::objects_in(&mut file)? {
                    let made = self.parts.objects.stat(&digest)?.and_then(|stat| objects::maker(&stat));
                    if made == Some(from) {
                        self.parts.objects.stamp(&digest, Some(to))?;
                    }
                }
                Ok(())
            };
            restamp().map_err(|error| Error::system("rename", error).layer(to))?;
        }
        Ok(changed)
    }

    fn purge(&self, trashed: &Path) -> Result<Vec<LayerId>> {
        let name = trashed.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let id = name.strip_prefix(NAME).and_then(|rest| rest.split('-').nth(1)?.parse().ok());
        let heirs = match id {
            Some(id) => self.collect(id, trashed)?,
            None => BTreeSet::new(),
        };
        home::purge(trashed)?;
        Ok(heirs.into_iter().collect())
    }

    fn purges_only_the_folder(&self, trashed: &Path) -> bool {
        [TREE, TAKING].iter().all(|name| !trashed.join(name).exists())
    }

    fn prepare(&self, id: LayerId) -> Result<Changed> {
        let record = self.home().must("prepare", id)?;
        let Some(imaged) = self.imaged(id, &record)? else { return Ok(Changed::No) };
        let there = self.home().part(imaged, IMAGE).exists();
        let _ = self.parts.image(imaged)?;
        Ok(if there { Changed::No } else { Changed::Yes })
    }

    fn unprepare(&self, needed: &dyn Fn(LayerId) -> bool, dry_run: bool) -> Result<Vec<(LayerId, Usage)>> {
        self.take_spare_images(needed, dry_run)
    }

    fn distrust(&self, id: LayerId) -> Result<()> {
        let failed = |error| Error::system("doubt the objects", error).layer(id);
        let Some(mut file) = self.parts.tree_file(id).map_err(failed)? else { return Ok(()) };
        // A damaged list names nothing that could be used unseen.
        for digest in tree::objects_in(&mut file).unwrap_or_default() {
            if self.parts.objects.stat(&digest).map_err(failed)?.is_some() {
                self.parts.objects.stamp(&digest, None).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn mounts(&self, id: LayerId, options: &MountOptions) -> Result<MountPlan> {
        self.plan(id, options)
    }

    fn stat(&self, id: LayerId) -> Result<Option<LayerInfo>> {
        Ok(self.home().record(id)?.map(|record| record.info(id)))
    }

    fn walk(&self, visit: &mut dyn FnMut(LayerId, Result<LayerInfo>) -> Result<()>) -> Result<()> {
        self.home().walk(visit)
    }

    fn own_folder(&self, id: LayerId) -> Result<Option<PathBuf>> {
        let record = self.home().must("look at", id)?;
        Ok((record.kind == Kind::Active).then(|| self.home().part(id, UPPER)))
    }

    fn own(&self, id: LayerId, views: &dyn Views) -> Result<Option<Box<dyn View>>> {
        match self.home().must("look at", id)?.kind {
            Kind::Committed => self.own_view(id, views).map(Some),
            Kind::Active | Kind::View => Ok(None),
        }
    }

    fn metadata(&self, id: LayerId) -> Result<Vec<(String, String)>> {
        let record = self.home().must("inspect", id)?;
        let mut pairs = Vec::new();
        let mut pair = |name: &str, path: PathBuf| pairs.push((name.to_owned(), path.display().to_string()));
        if let Some(imaged) = self.imaged(id, &record)? {
            pair("Image", self.home().part(imaged, IMAGE));
            pair("Objects", self.home().path().join("objects"));
        }
        if record.kind == Kind::Active {
            pair("UpperDir", self.home().part(id, UPPER));
            pair("WorkDir", self.home().part(id, WORK));
            pairs.extend(self.limits.facts(self.home(), id)?);
        }
        Ok(pairs)
    }

    fn diff(
        &self,
        id: LayerId,
        base: Option<LayerId>,
        views: &dyn Views,
        sink: &mut dyn DiffSink,
    ) -> Result<()> {
        let record = self.home().must("diff", id)?;
        let with_tree = self.imaged(id, &record)? == Some(id);
        let native = match record.kind {
            Kind::View => false,
            Kind::Active => !with_tree,
            Kind::Committed => true,
        };
        if !native || record.chain.first().copied() != base {
            return generic_diff(self, id, base, views, sink);
        }
        let read_only = MountOptions { read_only: true, ..MountOptions::default() };
        let below = base.map(|base| views.view(&self.mounts(base, &read_only)?)).transpose()?;
        let below = below.as_ref().map(|below| below.root());
        let guide = UpperGuide::new(self.config.xattrs, views, self.mounts(id, &read_only)?);
        if record.kind == Kind::Committed {
            let own = self.own_view(id, views)?;
            return guided_diff(own.root(), below, &guide, FORM, sink).map_err(|error| error.layer(id));
        }
        let own = self.home().open_part(id, UPPER)?;
        guided_diff(own.as_fd(), below, &guide, FORM, sink).map_err(|error| error.layer(id))
    }

    fn twin(&self, id: LayerId, path: &LayerPath, file: &File) -> Option<File> {
        self.twin_of(id, path, file).ok().flatten()
    }

    fn as_dyn(&self) -> &dyn Driver {
        self
    }

    fn usage(&self, id: LayerId) -> Result<Usage> {
        let kind = self.home().must("measure", id)?.kind;
        if kind == Kind::View {
            return Ok(Usage::default());
        }
        let mut usage = self.parts.usage(id).map_err(|error| Error::system("measure", error).layer(id))?;
        if kind == Kind::Active {
            usage += disk::usage(self.home().open_part(id, UPPER)?.as_fd())?;
        }
        Ok(usage)
    }

    fn sync(&self, id: LayerId) -> Result<()> {
        let record = self.home().must("sync", id)?;
        let failed = |error| Error::system("sync", error).layer(id);
        if record.kind == Kind::Active {
            disk::sync(self.home().open_part(id, UPPER)?.as_fd())?;
            self.drop_volatile_mark(id)?;
        }
        if let Some(mut file) = self.parts.tree_file(id).map_err(failed)? {
            let mut sync = || -> io::Result<()> {
                rustix::fs::fsync(&file)?;
                let list = tree::objects_in(&mut file)?;
                list.iter().try_for_each(|digest| self.parts.objects.sync(digest))?;
                self.parts.objects.sync_folders(&list)
            };
            sync().map_err(failed)?;
        }
        self.home().sync(id)
    }

    fn check(&self, id: LayerId) -> Result<Vec<String>> {
        let record = self.home().must("check", id)?;
        let mut findings = Vec::new();
        if let Some(parent) = record.chain.first() {
            match self.home().record(*parent) {
                Ok(Some(below)) if below.kind == Kind::Committed => {}
                Ok(Some(_)) => findings.push(format!("its parent {parent} is not committed")),
                Ok(None) => findings.push(format!("its parent {parent} is missing")),
                Err(error) if error.kind == ErrorKind::Damaged => {
                    findings.push(format!("its parent {parent} is damaged"));
                }
                Err(error) => return Err(error),
            }
        }
        if record.kind == Kind::Active {
            findings.extend(self.limits.check(self.home(), id)?);
            for part in [UPPER, WORK] {
                match self.home().open_part(id, part) {
                    Ok(_) => {}
                    Err(error) if error.kind == ErrorKind::Damaged => {
                        findings.push(format!("its folder {part} is missing"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        match self.parts.tree(id) {
            Ok(Some(tree)) => self.check_objects(id, &tree, &mut findings)?,
            Ok(None) if record.kind == Kind::Committed => findings.push("its tree is missing".into()),
            Ok(None) => {}
            Err(error) if error.kind == ErrorKind::Damaged => {
                findings.push("its tree's file is damaged".into())
            }
            Err(error) => return Err(error),
        }
        // What it is made of must be sound to say so.
        if findings.is_empty() && !self.parts.is_image_sound(id).unwrap_or(true) {
            findings.push("its image is not what its layers give".into());
        }
        Ok(findings)
    }
}
