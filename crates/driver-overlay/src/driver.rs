//! The trait's methods.

use crate::joints;
use crate::lowers::Lowers;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::attributes;
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::target::{Joints, Target, Usage};
use vellum_archive::tree::{self, CopyOptions, Form};
use vellum_driver::home::{self, Below, Home, Record};
use vellum_driver::{
    Ability, Capabilities, Changed, CreateSpec, DiffSink, Driver, DriverConfig, Error, ErrorKind, Kind,
    LayerInfo, Mount, MountOption, MountOptions, MountPlan, MountSource, PathRef, Result, Support, Views,
    generic_diff, guided_diff,
};
use vellum_overlayfs::{Features, Limits, UpperGuide};
use vellum_sys::file::ensure_folder;
use vellum_sys::fsinfo::FileSystem;
use vellum_types::LayerId;

const LINKS: &str = "L";
const NONE: &str = ".none";
const RECORD: &str = "lower";

/// The overlay driver. See the crate's documentation.
#[derive(Debug)]
pub struct Overlay {
    home: Home,
    links: OwnedFd,
    config: DriverConfig,
    features: Features,
    limits: Limits,
    capabilities: Capabilities,
}

impl Overlay {
    /// Opens, and makes if need be, the driver's home.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: overlayfs does not work there, with the reason.
    pub fn open(path: &Path, config: DriverConfig) -> Result<Self> {
        let home = Home::open(path, "overlay", RECORD)?;
        let features = Features::of(home.dir(), path, config.xattrs)?;
        if let Some((reason, hint)) = features.refused {
            let mut error = Error::new(ErrorKind::Unsupported, "use the driver overlay", reason);
            error.hint = hint;
            return Err(error);
        }
        let folder = |name: &str| {
            ensure_folder(home.dir(), name, 0o700)
                .map_err(|error| Error::system(format!("make {}", path.join(name).display()), error))
        };
        let links = folder(LINKS)?;
        folder(NONE)?;
        let limits = Limits::of(home.dir(), config.rootless);
        let capabilities = capabilities(&features, limits, config);
        Ok(Self { home, links, config, features, limits, capabilities })
    }

    fn form(&self) -> Form {
        Form { xattrs: self.config.xattrs, rootless: self.config.rootless, raw: true }
    }

    /// The folders of a chain, as lower layers of a mount.
    fn lowers<'a>(&'a self, chain: &'a [LayerId]) -> impl Iterator<Item = MountOption> + 'a {
        let links = self.home.path().join(LINKS);
        chain.iter().map(move |id| lower(links.join(id.to_string())))
    }

    fn mode_options(&self, writable: bool, by_others: bool) -> Vec<MountOption> {
        let text = |word: &str, value: &str| MountOption::Text(word.into(), value.into());
        if self.config.xattrs == XattrForm::User {
            return vec![MountOption::Flag("userxattr".into())];
        }
        let mut options = Vec::new();
        if self.features.redirect_dir {
            // Without an upper nothing is made, only followed; the kernel turns `on` into that, older ones want to be told.
            let follow = !writable && !self.features.metacopy;
            options.push(text("redirect_dir", if follow { "follow" } else { "on" }));
        }
        if self.features.metacopy {
            // Needs redirects, which others turn off, and leaves files without data in the upper folder, which others read.
            options.push(text("metacopy", if by_others { "off" } else { "on" }));
        }
        if writable {
            options.push(text("index", "off"));
        }
        options
    }

    /// Takes the scratch folder of a layer that will not be mounted for writing again.
    fn drop_work(&self, id: LayerId) -> Result<()> {
        let Some(folder) = self.home.folder(id)? else { return Ok(()) };
        Ok(tree::remove(folder.as_fd(), OsStr::new("work"))?)
    }

    fn name_link(&self, id: LayerId) -> Result<()> {
        match rustix::fs::symlinkat(format!("../{id}/diff"), &self.links, id.to_string()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(Error::system("make the short name", error).layer(id)),
        }
    }

    /// Makes what an active layer has beside its record, in its new folder.
    fn make_parts(&self, id: LayerId, folder: &OwnedFd, parent: Option<LayerId>) -> Result<()> {
        let failed = |error| Error::system("create", error).layer(id);
        // What a container sees as its root: its mode is an image's unless one says otherwise.
        let diff = ensure_folder(folder, "diff", 0o755).map_err(failed)?;
        rustix::fs::mkdirat(folder, "work", Mode::RWXU).map_err(|error| failed(error.into()))?;
        parent.map_or(Ok(()), |parent| self.like_parent(id, diff.as_fd(), parent))
    }

    /// A container's root has owner, mode and attributes of its image's.
    fn like_parent(&self, id: LayerId, diff: BorrowedFd<'_>, parent: LayerId) -> Result<()> {
        let nearest = self.home.open_part(parent, "diff")?;
        joints::dress_dir(nearest.as_fd(), diff, self.config.xattrs)
            .map_err(|error| Error::system("give the root the parent's attributes", error).layer(id))
    }

    /// `nested`: a layer below keeps whiteouts of an inner overlay.
    fn join(&self, id: LayerId, chain: &[LayerId], joints: &Joints, nested: bool) -> Result<()> {
        if *joints == Joints::default() && !nested {
            return Ok(());
        }
        let roots = chain.iter().map(|lower| self.home.open_part(*lower, "diff")).collect::<Result<_>>()?;
        let lowers = Lowers::new(roots, self.form());
        let diff = self.home.open_part(id, "diff")?;
        joints::join(diff.as_fd(), &lowers, joints, self.form()).map_err(|error| error.layer(id))?;
        if nested {
            joints::mark_merged(diff.as_fd(), &lowers, self.form()).map_err(|error| error.layer(id))?;
        }
        Ok(())
    }

    /// Makes a layer a committed one on `below`.
    fn commit_on(&self, id: LayerId, below: Below, joints: &Joints) -> Result<()> {
        let Below { chain, hidden, nested } = below;
        self.join(id, &chain, joints, nested)?;
        // Overlayfs merges the roots of all the layers that it is given, opaque or not: what is hidden is not given.
        let diff = self.home.open_part(id, "diff")?;
        let opaque = attributes::is_opaque(&diff, self.config.xattrs)
            .map_err(|error| Error::system("commit", error).layer(id))?;
        let hidden = if opaque { chain.len() } else { hidden };
        let nested = nested || !joints.whiteouts.is_empty();
        self.drop_work(id)?;
        self.name_link(id)?;
        self.home.write_record(id, &Record { kind: Kind::Committed, chain, hidden, nested })
    }

    /// Takes back what could not be made.
    fn take_back(&self, id: LayerId) {
        // What keeps it is told when the layer is removed.
        let _ = self.limits.lift(&self.home, id);
        self.home.take_back(id);
    }

    /// Takes away what overlayfs leaves after a volatile mount so that nobody mounts the upper again unawares.
    fn drop_volatile_mark(&self, id: LayerId) -> Result<()> {
        let work = self.home.open_part(id, "work")?;
        match tree::open_dir(work.as_fd(), OsStr::new("work")) {
            Ok(scratch) => Ok(tree::remove(scratch.as_fd(), OsStr::new("incompat"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::system("sync", error).layer(id)),
        }
    }
}

fn lower(path: std::path::PathBuf) -> MountOption {
    MountOption::Path("lowerdir+".into(), PathRef::Host(path))
}

fn capabilities(features: &Features, limits: Limits, config: DriverConfig) -> Capabilities {
    let support = |yes: bool| if yes { Support::Yes } else { Support::No };
    let user = config.xattrs == XattrForm::User;
    let (quota, why) = limits.support();
    let upper_only = "the kernel allows it only with trusted attributes";
    Capabilities::new()
        .with(Ability::InstantCreate, Support::Yes, "a layer is an empty folder over its parent")
        .with(
            Ability::NativeDiff,
            Support::Yes,
            "the upper holds what changed; redirects and metacopy are followed",
        )
        .with(Ability::Quota, quota, why)
        .with(
            Ability::Reflink,
            support(features.reflink),
            if features.reflink {
                "the file system shares blocks"
            } else {
                "the file system cannot share blocks"
            },
        )
        .with(Ability::Rootless, Support::Yes, "userxattr works in a user namespace from Linux 5.11 on")
        .with(
            Ability::MaxLayers,
            Support::Limit(features.max_layers),
            if features.one_page {
                "what a page of options holds: this kernel does not take layers one by one (Linux 6.7)"
            } else {
                "what the kernel stacks in one mount"
            },
        )
        .with(Ability::SharesPageCache, Support::Yes, "containers read the files of the same lower layers")
        .with(Ability::StoresFilesOnce, Support::No, "each layer has files of its own")
        .with(
            Ability::ParallelUnpack,
            Support::Yes,
            "a layer's folder does not depend on its parent until it is joined",
        )
        .with(Ability::ClassicMounts, Support::Yes, "an overlay is one mount with options")
        .with(
            Ability::MetadataOnlyCopyUp,
            support(features.metacopy),
            if user { upper_only } else { "metacopy, as probed" },
        )
        .with(
            Ability::DirectoryRename,
            support(features.rename_directory),
            if user { upper_only } else { "redirect_dir, as probed" },
        )
        .with(
            Ability::AclOfLowerFile,
            Support::Yes,
            "the layers below lie on a file system that can be written",
        )
        .with(Ability::Volatile, support(features.volatile), "the mount option volatile, as probed")
        .with(
            Ability::NestedWhiteouts,
            support(features.nested),
            if features.nested {
                "the device 0:0 is kept as a file that an inner overlay takes for a whiteout"
            } else {
                "this kernel's overlayfs knows no whiteouts that are files (Linux 6.8)"
            },
        )
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
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
        let pair = |name: &str, value: String| (name.to_owned(), value);
        Ok(vec![
            pair("Backing Filesystem", backing.name.into()),
            pair("Supports d_type", self.features.d_type.to_string()),
            pair("Using metacopy", self.features.metacopy.to_string()),
            pair("Native Overlay Diff", "true".into()),
            pair("userxattr", (self.config.xattrs == XattrForm::User).to_string()),
            pair("Using redirect_dir", self.features.redirect_dir.to_string()),
            pair("Supports reflink", self.features.reflink.to_string()),
            pair("Nested whiteouts", self.features.nested.to_string()),
            pair("Most layers", self.features.max_layers.to_string()),
        ])
    }

    fn create(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        let size = self.limits.wanted(spec, "overlay", id)?;
        if spec.view && spec.parent.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "create a view", "a view has a parent").layer(id));
        }
        let below = self.home.below("create", spec.parent, self.features.max_layers)?;
        let folder = self.home.make(id)?;
        let made = if spec.view {
            self.home.write_first_record(id, &below.record(Kind::View))
        } else {
            self.limits
                .impose(&folder, id, size)
                .and_then(|()| self.make_parts(id, &folder, spec.parent))
                .and_then(|()| self.home.write_first_record(id, &below.record(Kind::Active)))
        };
        made.inspect_err(|_| self.take_back(id))
    }

    fn complete(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<Changed> {
        let Some(folder) = self.home.folder(id)? else {
            self.create(id, spec)?;
            return Ok(Changed::Yes);
        };
        let below = self.home.below("create", spec.parent, self.features.max_layers)?;
        let failed = |error| Error::system("create", error).layer(id);
        let recorded = matches!(self.home.record(id), Ok(Some(_)));
        let mut changed = Changed::No;
        if !spec.view {
            for part in ["diff", "work"] {
                let there = tree::open_dir(folder.as_fd(), OsStr::new(part)).is_ok();
                let diff = ensure_folder(&folder, part, if part == "diff" { 0o755 } else { 0o700 })
                    .map_err(failed)?;
                // An empty root may have come without its attributes; one that was written to has those it should have.
                let empty = !there || (!recorded && tree::read_dir(diff.as_fd()).map_err(failed)?.is_empty());
                if let (true, "diff", Some(parent)) = (empty, part, spec.parent) {
                    self.like_parent(id, diff.as_fd(), parent)?;
                }
                if !there {
                    changed = Changed::Yes;
                }
            }
        }
        if !recorded {
            let kind = if spec.view { Kind::View } else { Kind::Active };
            self.home.write_record(id, &below.record(kind))?;
            changed = Changed::Yes;
        }
        Ok(changed)
    }

    fn target(&self, id: LayerId) -> Result<Box<dyn Target>> {
        self.home.active("unpack", id)?;
        let options = FolderOptions {
            style: Style::Overlay,
            xattrs: self.config.xattrs,
            rootless: self.config.rootless,
            nested: self.features.nested,
        };
        let target = FolderTarget::new(self.home.open_part(id, "diff")?, options)
            .map_err(|error| Error::system("unpack", error).layer(id))?;
        Ok(Box::new(target))
    }

    fn commit(&self, id: LayerId, parent: Option<LayerId>, joints: &Joints) -> Result<Changed> {
        if self.home.to_commit(id, parent, true)?.is_none() {
            return Ok(Changed::No);
        }
        let below = self.home.below("commit", parent, self.features.max_layers)?;
        // A layer that is full has no room for what a commit writes.
        let lifted = self.limits.lift(&self.home, id)?;
        match self.commit_on(id, below, joints) {
            Ok(()) => Ok(Changed::Yes),
            Err(error) => {
                self.limits.restore(&self.home, lifted);
                Err(error)
            }
        }
    }

    fn copy(&self, from: LayerId, to: LayerId) -> Result<()> {
        let record = self.home.active("copy", from)?;
        let source = self.home.open_part(from, "diff")?;
        let folder = self.home.make(to)?;
        let copied = (|| {
            let part = |name: &str| {
                ensure_folder(&folder, name, 0o700).map_err(|error| Error::system("copy", error).layer(to))
            };
            self.limits.share(&self.home, from, &folder, to)?;
            let (diff, _) = (part("diff")?, part("work")?);
            tree::copy(source.as_fd(), diff.as_fd(), CopyOptions { skip_devices: self.config.rootless })?;
            let uuid = [self.config.xattrs.prefix(), b"uuid"].concat();
            match rustix::fs::fremovexattr(&diff, uuid) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(Error::system("copy", error).layer(to)),
            }
            self.home.write_record(to, &record)
        })();
        copied.inspect_err(|_| self.take_back(to))
    }

    fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed> {
        let unlinked = match rustix::fs::unlinkat(&self.links, id.to_string(), AtFlags::empty()) {
            Ok(()) => Changed::Yes,
            Err(Errno::NOENT) => Changed::No,
            Err(error) => return Err(Error::system("remove the short name", error).layer(id)),
        };
        let _ = self.limits.lift(&self.home, id)?;
        match self.home.remove(id, trash)? {
            Changed::Yes => Ok(Changed::Yes),
            Changed::No => Ok(unlinked),
        }
    }

    fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed> {
        let changed = self.home.rename(from, to)?;
        self.name_link(to)?;
        match rustix::fs::unlinkat(&self.links, from.to_string(), AtFlags::empty()) {
            Ok(()) => Ok(Changed::Yes),
            Err(Errno::NOENT) => Ok(changed),
            Err(error) => Err(Error::system("remove the short name", error).layer(from)),
        }
    }

    fn purge(&self, trashed: &Path) -> Result<Vec<LayerId>> {
        home::purge(trashed).map(|()| Vec::new())
    }

    fn mounts(&self, id: LayerId, options: &MountOptions) -> Result<MountPlan> {
        let record = self.home.must("mount", id)?;
        let writable = record.kind == Kind::Active && !options.read_only;
        if writable {
            self.limits.make_room(&self.home, id)?;
        }
        let path = |word: &str, part| MountOption::Path(word.into(), PathRef::Host(self.home.part(id, part)));
        let mut list = Vec::with_capacity(record.chain.len() + 8);
        match record.kind {
            Kind::Active if !writable => list.push(lower(self.home.part(id, "diff"))),
            Kind::Committed => list.push(lower(self.home.path().join(LINKS).join(id.to_string()))),
            Kind::Active | Kind::View => {}
        }
        list.extend(self.lowers(record.seen()));
        if list.len() < if writable { 1 } else { 2 } {
            list.push(lower(self.home.path().join(NONE)));
        }
        if writable {
            list.push(path("upperdir", "diff"));
            list.push(path("workdir", "work"));
        }
        list.extend(self.mode_options(writable, options.by_others));
        if options.volatile && writable {
            list.push(MountOption::Flag("volatile".into()));
        }
        if let Some(label) = &options.label {
            list.push(MountOption::Text("context".into(), label.clone()));
        }
        Ok(MountPlan::of(Mount {
            fs_type: "overlay".into(),
            source: MountSource::Name("overlay".into()),
            options: list,
            read_only: !writable,
        }))
    }

    fn stat(&self, id: LayerId) -> Result<Option<LayerInfo>> {
        Ok(self.home.record(id)?.map(|record| record.info(id)))
    }

    fn walk(&self, visit: &mut dyn FnMut(LayerId, Result<LayerInfo>) -> Result<()>) -> Result<()> {
        self.home.walk(visit)
    }

    fn own_folder(&self, id: LayerId) -> Result<Option<std::path::PathBuf>> {
        let record = self.home.must("look at", id)?;
        Ok((record.kind != Kind::View).then(|| self.home.part(id, "diff")))
    }

    fn metadata(&self, id: LayerId) -> Result<Vec<(String, String)>> {
        let record = self.home.must("inspect", id)?;
        let mut pairs = Vec::new();
        let mut pair = |name: &str, value: String| pairs.push((name.to_owned(), value));
        let shown = |id: &LayerId| self.home.part(*id, "diff").display().to_string();
        if !record.chain.is_empty() {
            pair("LowerDir", record.chain.iter().map(shown).collect::<Vec<_>>().join(":"));
        }
        if record.kind != Kind::View {
            pair("UpperDir", shown(&id));
        }
        if record.kind == Kind::Active {
            pair("WorkDir", self.home.part(id, "work").display().to_string());
            pairs.extend(self.limits.facts(&self.home, id)?);
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
        let record = self.home.must("diff", id)?;
        if record.kind == Kind::View || record.chain.first().copied() != base {
            return generic_diff(self, id, base, views, sink);
        }
        let read_only = MountOptions { read_only: true, ..MountOptions::default() };
        let own = self.home.open_part(id, "diff")?;
        let base = base.map(|base| views.view(&self.mounts(base, &read_only)?)).transpose()?;
        let guide = UpperGuide::new(self.config.xattrs, views, self.mounts(id, &read_only)?);
        let form = Form { raw: false, ..self.form() };
        guided_diff(own.as_fd(), base.as_ref().map(|base| base.root()), &guide, form, sink)
            .map_err(|error| error.layer(id))
    }

    fn as_dyn(&self) -> &dyn Driver {
        self
    }

    fn usage(&self, id: LayerId) -> Result<Usage> {
        if self.home.must("measure", id)?.kind == Kind::View {
            return Ok(Usage::default());
        }
        Ok(tree::usage(self.home.open_part(id, "diff")?.as_fd())?)
    }

    fn sync(&self, id: LayerId) -> Result<()> {
        let record = self.home.must("sync", id)?;
        if record.kind != Kind::View {
            tree::sync(self.home.open_part(id, "diff")?.as_fd())?;
        }
        if record.kind == Kind::Committed {
            rustix::fs::fsync(&self.links).map_err(|error| Error::system("sync", error).layer(id))?;
        }
        if record.kind == Kind::Active {
            self.drop_volatile_mark(id)?;
        }
        self.home.sync(id)
    }

    fn check(&self, id: LayerId) -> Result<Vec<String>> {
        let record = self.home.must("check", id)?;
        let mut findings = self.home.check_chain(&record)?;
        let parts: &[&str] = match record.kind {
            Kind::Active => &["diff", "work"],
            Kind::Committed => &["diff"],
            Kind::View => &[],
        };
        if record.kind == Kind::Active {
            findings.extend(self.limits.check(&self.home, id)?);
        }
        for part in parts {
            match self.home.open_part(id, part) {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Damaged => {
                    findings.push(format!("its folder {part} is missing"))
                }
                Err(error) => return Err(error),
            }
        }
        if record.kind == Kind::Committed {
            let expected = format!("../{id}/diff");
            match rustix::fs::readlinkat(&self.links, id.to_string(), Vec::new()) {
                Ok(text) if text.as_bytes() == expected.as_bytes() => {}
                Ok(_) => findings.push(format!("its short name {LINKS}/{id} points elsewhere")),
                Err(Errno::NOENT | Errno::INVAL) => {
                    findings.push(format!("its short name {LINKS}/{id} is missing"))
                }
                Err(error) => return Err(Error::system("check", error).layer(id)),
            }
        }
        Ok(findings)
    }
}
