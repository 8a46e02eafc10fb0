//! The applier into the driver composefs, beside the same into a plain folder, which is the model.
//!
//! What a folder takes the driver takes, too; both report the same, and write the same manifest. What the driver then shows of its layer is as that manifest says, the recipe gives the
//! archive back bit for bit out of it, and when the layer is removed no object is left.

use super::apply::{LIMITS, Layer, raw_form, report};
use crate::jail::told;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::cell::Cell;
use std::fs::File;
use std::io::Cursor;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::apply::{ApplyOptions, apply};
use vellum_archive::target::{Joints, LayerPath};
use vellum_driver::{CreateSpec, Driver, DriverConfig, Factory as _, ProbeEnvironment};
use vellum_mount::Mounter;
use vellum_types::LayerId;

/// A home of the driver, used over and over.
struct Lab {
    folder: tempfile::TempDir,
    driver: Box<dyn Driver>,
    mounter: Mounter,
    next: Cell<u32>,
}

thread_local! {
    static LAB: Option<Lab> = Lab::new();
}

impl Lab {
    /// `None` where the driver does not work.
    fn new() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("vellum-fuzz-").tempdir().expect("a temporary folder");
        let factory = vellum_driver_composefs::FACTORY;
        let rootless = !rustix::process::geteuid().is_root();
        if !factory.probe(&ProbeEnvironment { root: folder.path(), rootless }).usable {
            return None;
        }
        let part = |name: &str| {
            let path = folder.path().join(name);
            std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a folder in a new one");
            path
        };
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless, verity: true };
        let driver = factory.open(&part("home"), config).expect("a driver that works here");
        let mounter = Mounter::new(part("run"), part("mnt")).expect("a mounter");
        let _ = part("trash");
        Some(Self { driver, mounter, folder, next: Cell::new(0) })
    }

    fn id(&self) -> LayerId {
        self.next.set(self.next.get() + 1);
        LayerId::new(self.next.get()).expect("fewer layers than there are ids")
    }

    fn same(&self, tar: &[u8], model: Option<&Layer>) {
        let id = self.id();
        self.driver.create(id, &CreateSpec::default()).expect("a new layer");
        let recipe_path = self.folder.path().join("recipe");
        let mut recipe = File::create(&recipe_path).expect("a file in the lab");
        let mut manifest = Vec::new();
        let options = ApplyOptions {
            limits: LIMITS,
            recipe: Some(&mut recipe),
            manifest: Some(&mut manifest),
            ..ApplyOptions::default()
        };
        let target = self.driver.target(id).expect("a target");
        match (apply(Cursor::new(tar), target, options), model) {
            (Ok(applied), Some(model)) => {
                let (mut ours, mut theirs) = (applied, model.applied.clone());
                // Links are noted by the one in the order of names, by the other in that of the archive.
                for applied in [&mut ours, &mut theirs] {
                    applied.finished.usage = vellum_archive::target::Usage::default();
                    applied.finished.joints.links.sort();
                    applied.finished.joints.whiteouts.sort();
                }
                assert_eq!(ours, theirs, "the driver has taken something else than the folder");
                assert_eq!(manifest, model.manifest, "the manifests differ");
                self.look(id, tar, &File::open(&recipe_path).expect("what was just written"), model);
            }
            (Err(error), Some(_)) => panic!("the folder takes it, and the driver does not: {}", told(&error)),
            // A name or an attribute that the disk has no room for.
            (_, None) => {}
        }
        self.remove(id);
    }

    /// Reads the layer as `check` and `save` do.
    fn look(&self, id: LayerId, tar: &[u8], recipe: &File, model: &Layer) {
        let _ = self.driver.commit(id, None, &Joints::default()).expect("a layer to commit");
        assert_eq!(self.driver.check(id).expect("a layer to check"), Vec::<String>::new());
        let own = self.driver.own(id, &self.mounter).expect("a layer to look at").expect("a view");
        report(&[&model.manifest], own.root(), raw_form(), model);
        let mut out = Vec::new();
        vellum_archive::recipe::assemble(recipe, &mut |path| beneath(own.root(), path), &mut out)
            .unwrap_or_else(|error| panic!("the recipe: {}", told(&error)));
        assert!(out == tar, "the recipe gives other bytes out of the driver's layer");
    }

    fn remove(&self, id: LayerId) {
        let trash = self.folder.path().join("trash");
        let _ = self.driver.remove(id, &trash).expect("whatever was made can be removed");
        for entry in entries(&trash) {
            self.driver.purge(&entry).expect("what was removed can be deleted");
        }
        let left = entries(&self.driver.home().join("objects"));
        assert!(left.is_empty(), "objects of no layer: {left:?}");
    }
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of the lab");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn beneath(root: BorrowedFd<'_>, path: &LayerPath) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root.as_fd(), path.as_path(), flags, Mode::empty(), resolve)?.into())
}

/// Has the driver take what a folder took (`model`), or could not.
pub(super) fn same(tar: &[u8], model: Option<&Layer>) {
    LAB.with(|lab| {
        if let Some(lab) = lab {
            lab.same(tar, model);
        }
    });
}
