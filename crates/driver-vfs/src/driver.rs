//! The trait's methods.

use std::os::fd::AsFd;
use std::path::Path;
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::target::{Joints, Target, Usage};
use vellum_archive::tree::{self, CopyOptions};
use vellum_driver::home::{self, Home, Record};
use vellum_driver::{
    Ability, Capabilities, Changed, CreateSpec, Driver, DriverConfig, Error, ErrorKind, Factory, Kind,
    LayerInfo, MountOptions, MountPlan, Probe, ProbeEnvironment, Result, Support,
};
use vellum_sys::file::{ensure_folder, open_folder};
use vellum_sys::fsinfo::{self, FileSystem};
use vellum_types::LayerId;

const TREE: &str = "dir";
const RECORD: &str = "info";
/// There is no limit but the caller's patience.
const NO_LIMIT: u64 = LayerId::MAX as u64;

/// Makes and probes the vfs driver.
#[derive(Debug, Clone, Copy)]
pub struct VfsFactory;

/// The vfs driver, for a table of drivers.
pub static FACTORY: VfsFactory = VfsFactory;

impl Factory for VfsFactory {
    fn name(&self) -> &'static str {
        "vfs"
    }

    fn summary(&self) -> &'static str {
        "a full copy of the tree for each layer: runs anywhere, shares nothing but blocks where the file system has reflink"
    }

    fn probe(&self, environment: &ProbeEnvironment<'_>) -> Probe {
        let root = environment.root;
        let file_system = FileSystem::at(root).map_or("unknown", |fs| fs.name);
        let mut facts = vec![("backing file system".to_owned(), file_system.to_owned())];
        let reflink = open_folder(rustix::fs::CWD, root).and_then(fsinfo::probe_reflink);
        let (usable, reason, hint) = match reflink {
            Ok(reflink) => {
                facts.push(("reflink".into(), reflink.works().to_string()));
                let how = if reflink.works() { "by reflink" } else { "byte by byte" };
                (true, format!("it needs nothing; {file_system} at {} copies {how}", root.display()), None)
            }
            Err(error) => (
                false,
                format!("{} cannot be written: {error}", root.display()),
                Some("the store's root must be a folder that can be written".into()),
            ),
        };
        Probe { driver: self.name().into(), usable, works_fully: usable, reason, hint, facts }
    }

    fn open(&self, home: &Path, config: DriverConfig) -> Result<Box<dyn Driver>> {
        Ok(Box::new(Vfs::open(home, config)?))
    }
}

/// The vfs driver. See the crate's documentation.
#[derive(Debug)]
pub struct Vfs {
    home: Home,
    config: DriverConfig,
    capabilities: Capabilities,
}

impl Vfs {
    /// Opens, and makes if need be, the driver's home.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path, config: DriverConfig) -> Result<Self> {
        let home = Home::open(path, "vfs", RECORD)?;
        let reflink = match fsinfo::probe_reflink(home.dir()) {
            Ok(reflink) => reflink.works(),
            // A full disk keeps nobody from opening the store to remove something from it.
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => false,
            Err(error) => return Err(Error::system(format!("probe {}", home.path().display()), error)),
        };
        Ok(Self { home, config, capabilities: capabilities(reflink) })
    }

    fn copy_tree(&self, from: LayerId, to: LayerId, record: &Record) -> Result<()> {
        let source = self.home.open_part(from, TREE)?;
        let folder = self.home.make(to)?;
        let copied = (|| {
            let tree = ensure_folder(&folder, TREE, 0o700)
                .map_err(|error| Error::system("copy", error).layer(to))?;
            tree::copy(source.as_fd(), tree.as_fd(), CopyOptions { skip_devices: self.config.rootless })?;
            self.home.write_record(to, record)
        })();
        if copied.is_err() {
            self.home.take_back(to);
        }
        copied
    }

    /// Whose `dir` the layer's tree is.
    fn tree_of(&self, id: LayerId, record: &Record) -> LayerId {
        match record.kind {
            Kind::View => record.chain.first().copied().unwrap_or(id),
            Kind::Active | Kind::Committed => id,
        }
    }
}

fn capabilities(reflink: bool) -> Capabilities {
    let copies = "every layer is a whole tree of its own";
    Capabilities::new()
        .with(Ability::InstantCreate, Support::No, "the parent's tree is copied")
        .with(Ability::NativeDiff, Support::No, "both trees are walked")
        .with(Ability::Quota, Support::No, "a folder has no limit of its own")
        .with(
            Ability::Reflink,
            if reflink { Support::Yes } else { Support::No },
            if reflink { "the file system shares blocks" } else { "the file system cannot share blocks" },
        )
        .with(Ability::Rootless, Support::Yes, "plain folders need no privileges")
        .with(Ability::MaxLayers, Support::Limit(NO_LIMIT), "a mount is one folder however long the chain")
        .with(Ability::SharesPageCache, Support::No, copies)
        .with(Ability::StoresFilesOnce, Support::No, "each layer has files of its own")
        .with(Ability::ParallelUnpack, Support::No, "a layer's tree begins as a copy of its parent's")
        .with(Ability::ClassicMounts, Support::Yes, "a tree is one bind mount")
        .with(
            Ability::MetadataOnlyCopyUp,
            Support::Yes,
            "nothing is copied at a change: the copy was made before",
        )
        .with(Ability::DirectoryRename, Support::Yes, copies)
        .with(Ability::AclOfLowerFile, Support::Yes, copies)
        .with(Ability::Volatile, Support::No, "a bind mount has no such option")
        .with(Ability::NestedWhiteouts, Support::Yes, "the device 0:0 is a node like others")
}

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        "vfs"
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
        Ok(vec![
            ("Backing Filesystem".into(), backing.name.into()),
            ("Supports reflink".into(), self.capabilities.has(Ability::Reflink).to_string()),
        ])
    }

    fn create(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        if let Some((name, _)) = spec.options.first() {
            let reason = format!("vfs has no storage option '{}'", name.escape_debug());
            return Err(Error::new(ErrorKind::Unsupported, "create", reason).layer(id));
        }
        let mut chain = self.home.below("create", spec.parent, NO_LIMIT)?.chain;
        chain.truncate(1);
        let kind = if spec.view { Kind::View } else { Kind::Active };
        let record = Record { kind, chain, hidden: 0, nested: false };
        match (spec.parent, spec.view) {
            (None, true) => {
                Err(Error::new(ErrorKind::Invalid, "create a view", "a view has a parent").layer(id))
            }
            (Some(parent), false) => self.copy_tree(parent, id, &record),
            (parent, _) => {
                let folder = self.home.make(id)?;
                let made = if parent.is_none() {
                    ensure_folder(&folder, TREE, 0o755)
                        .map(drop)
                        .map_err(|error| Error::system("create", error).layer(id))
                } else {
                    Ok(())
                };
                made.and_then(|()| self.home.write_record(id, &record))
                    .inspect_err(|_| self.home.take_back(id))
            }
        }
    }

    fn target(&self, id: LayerId) -> Result<Box<dyn Target>> {
        self.home.active("unpack", id)?;
        let options = FolderOptions {
            style: Style::Apply,
            xattrs: self.config.xattrs,
            rootless: self.config.rootless,
            nested: false,
        };
        let target = FolderTarget::new(self.home.open_part(id, TREE)?, options)
            .map_err(|error| Error::system("unpack", error).layer(id))?;
        Ok(Box::new(target))
    }

    fn commit(&self, id: LayerId, parent: Option<LayerId>, joints: &Joints) -> Result<Changed> {
        let Some(record) = self.home.to_commit(id, parent, false)? else { return Ok(Changed::No) };
        self.home.below("commit", parent, NO_LIMIT)?;
        if let Some((link, existing)) = joints.links.first() {
            let reason = format!("{link} links to {existing}, and no layer below has that file");
            return Err(Error::new(ErrorKind::Invalid, "commit", reason).layer(id));
        }
        self.home.write_record(id, &Record { kind: Kind::Committed, ..record })?;
        Ok(Changed::Yes)
    }

    fn copy(&self, from: LayerId, to: LayerId) -> Result<()> {
        let record = self.home.active("copy", from)?;
        self.copy_tree(from, to, &record)
    }

    fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed> {
        self.home.remove(id, trash)
    }

    fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed> {
        self.home.rename(from, to)
    }

    fn purge(&self, trashed: &Path) -> Result<Vec<LayerId>> {
        home::purge(trashed).map(|()| Vec::new())
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
        let tree = self.home.part(self.tree_of(id, &record), TREE);
        Ok(vec![("Dir".into(), tree.display().to_string())])
    }

    fn as_dyn(&self) -> &dyn Driver {
        self
    }

    fn usage(&self, id: LayerId) -> Result<Usage> {
        if self.home.must("measure", id)?.kind == Kind::View {
            return Ok(Usage::default());
        }
        Ok(tree::usage(self.home.open_part(id, TREE)?.as_fd())?)
    }

    fn sync(&self, id: LayerId) -> Result<()> {
        if self.home.must("sync", id)?.kind != Kind::View {
            tree::sync(self.home.open_part(id, TREE)?.as_fd())?;
        }
        self.home.sync(id)
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
            Ok(_) => {}
            Err(error) if matches!(error.kind, ErrorKind::Damaged | ErrorKind::NotFound) => {
                findings.push("its tree is missing".into());
            }
            Err(error) => return Err(error),
        }
        Ok(findings)
    }
}
