//! The native diff of each driver that has one equals the generic one, whatever a container did.

use proptest::prelude::*;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::target::{Joints, Meta};
use vellum_driver::{
    Change, CreateSpec, DiffEntry, DiffSink, Driver, DriverConfig, Factory, MountOptions, Result, Views,
    generic_diff,
};
use vellum_mount::Mounter;
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::skip;
use vellum_types::LayerId;

/// What a container does; paths are chosen by number among those there are.
#[derive(Debug, Clone)]
enum Work {
    Write(u8, u8, u8),
    Append(u8),
    MakeDir(u8, u8),
    Remove(u8),
    Rename(u8, u8, u8),
    Link(u8, u8, u8),
    Symlink(u8, u8),
    Mode(u8, u16),
    Owner(u8, u32),
    Attribute(u8, u8),
    WholeSeconds(u8, u8),
    Pipe(u8, u8),
}

fn work() -> impl Strategy<Value = Work> {
    let any = any::<u8>;
    prop_oneof![
        (any(), any(), any()).prop_map(|(a, b, c)| Work::Write(a, b, c)),
        any().prop_map(Work::Append),
        (any(), any()).prop_map(|(a, b)| Work::MakeDir(a, b)),
        any().prop_map(Work::Remove),
        (any(), any(), any()).prop_map(|(a, b, c)| Work::Rename(a, b, c)),
        (any(), any(), any()).prop_map(|(a, b, c)| Work::Link(a, b, c)),
        (any(), any()).prop_map(|(a, b)| Work::Symlink(a, b)),
        (any(), 0o700..0o1000u16).prop_map(|(a, b)| Work::Mode(a, b)),
        (any(), 0..3u32).prop_map(|(a, b)| Work::Owner(a, b)),
        (any(), any()).prop_map(|(a, b)| Work::Attribute(a, b)),
        (any(), 0..3u8).prop_map(|(a, b)| Work::WholeSeconds(a, b)),
        (any(), any()).prop_map(|(a, b)| Work::Pipe(a, b)),
    ]
}

fn all(root: &Path, dirs_only: bool) -> Vec<std::path::PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while at < found.len() {
        if found[at].symlink_metadata().unwrap().is_dir() {
            let mut names: Vec<_> = fs::read_dir(&found[at]).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            found.extend(names);
        }
        at += 1;
    }
    if dirs_only {
        found.retain(|path| path.symlink_metadata().unwrap().is_dir());
    }
    found
}

/// Does it; what cannot be done (a directory into itself, a name that is taken) is not done.
fn apply(root: &Path, work: &Work) {
    let pick = |n: u8| {
        let all = all(root, false);
        all[n as usize % all.len()].clone()
    };
    let fresh = |dir: u8, name: u8| {
        let dirs = all(root, true);
        dirs[dir as usize % dirs.len()].join(["a", "b", "c", "d", "é"][name as usize % 5])
    };
    let plain = |path: &Path| path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink());
    let _ = match *work {
        Work::Write(dir, name, byte) => {
            let path = fresh(dir, name);
            if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
                return;
            }
            fs::write(path, vec![byte % 4; usize::from(byte % 4)])
        }
        Work::Append(n) => {
            let path = pick(n);
            if !path.symlink_metadata().unwrap().is_file() {
                return;
            }
            fs::OpenOptions::new()
                .append(true)
                .open(path)
                .and_then(|mut f| std::io::Write::write_all(&mut f, b"+"))
        }
        Work::MakeDir(dir, name) => fs::create_dir(fresh(dir, name)),
        Work::Remove(n) => {
            let path = pick(n);
            if path == root {
                return;
            }
            if path.symlink_metadata().unwrap().is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
        }
        Work::Rename(n, dir, name) => {
            let path = pick(n);
            if path == root {
                return;
            }
            fs::rename(path, fresh(dir, name))
        }
        Work::Link(n, dir, name) => fs::hard_link(pick(n), fresh(dir, name)),
        Work::Symlink(dir, name) => symlink("../a", fresh(dir, name)),
        Work::Mode(n, mode) => {
            let path = pick(n);
            if !plain(&path) {
                return;
            }
            fs::set_permissions(path, fs::Permissions::from_mode(mode.into()))
        }
        Work::Owner(n, id) => {
            let path = pick(n);
            if !plain(&path) {
                return;
            }
            chown(path, Some(id), Some(id))
        }
        Work::Attribute(n, value) => {
            let flags = rustix::fs::XattrFlags::empty();
            let name = ["user.x", "trusted.y", "trusted.overlay.opaque"][usize::from(value) % 3];
            rustix::fs::lsetxattr(pick(n), name, &[value % 2], flags).map_err(Into::into)
        }
        Work::WholeSeconds(n, seconds) => {
            let time = rustix::fs::Timespec { tv_sec: 1_000_000_000 + i64::from(seconds), tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, pick(n), &times, nofollow).map_err(Into::into)
        }
        Work::Pipe(dir, name) => {
            rustix::fs::mkfifoat(rustix::fs::CWD, fresh(dir, name), rustix::fs::Mode::RUSR)
                .map_err(Into::into)
        }
    };
}

#[derive(Debug, PartialEq)]
struct Told {
    path: String,
    change: Change,
    itself: bool,
    meta: Option<(u32, Meta)>,
    content: Option<Vec<u8>>,
}

#[derive(Default)]
struct Collect(Vec<Told>);

impl DiffSink for Collect {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> Result<()> {
        let content = entry.node.filter(|n| n.file_type() == rustix::fs::FileType::RegularFile).map(|node| {
            let mut bytes = Vec::new();
            node.open().unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        });
        let meta = entry.node.map(|node| (node.stat.st_mode & 0o170_000, node.meta().unwrap()));
        let (change, itself) = (entry.change, entry.itself);
        self.0.push(Told { path: entry.path.to_string(), change, itself, meta, content });
        Ok(())
    }
}

struct Stage {
    driver: Box<dyn Driver>,
    mounter: Mounter,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(factory: &dyn Factory, place: &Path) -> Self {
        let folder = tempfile::tempdir_in(place).unwrap();
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let driver = factory.open(&folder.path().join("home"), config).unwrap();
        let mounter = Mounter::new(folder.path().join("run"), folder.path().join("mnt")).unwrap();
        Self { driver, mounter, folder }
    }

    /// Takes the layers away as the driver does: what it keeps need not be removable otherwise.
    fn end(self, layers: u32) {
        let trash = self.folder.path().join("trash");
        fs::create_dir(&trash).unwrap();
        for n in 1..=layers {
            let _ = self.driver.remove(id(n), &trash).unwrap();
        }
        for entry in fs::read_dir(&trash).unwrap() {
            self.driver.purge(&entry.unwrap().path()).unwrap();
        }
    }

    /// A layer in which this was done, on the layer before it.
    fn layer(&self, n: u32, work: &[Work]) {
        let parent = LayerId::new(n - 1);
        self.driver.create(id(n), &CreateSpec { parent, ..CreateSpec::default() }).unwrap();
        let plan = self.driver.mounts(id(n), &MountOptions::default()).unwrap();
        let root = self.mounter.acquire(id(n), &plan).unwrap();
        for one in work {
            apply(&root, one);
        }
        let _ = self.mounter.release(id(n)).unwrap();
    }

    fn compare(&self, n: u32) -> std::result::Result<(), TestCaseError> {
        self.compare_with(n, n - 1)
    }

    fn compare_with(&self, n: u32, base: u32) -> std::result::Result<(), TestCaseError> {
        let (base, views) = (LayerId::new(base), &self.mounter as &dyn Views);
        let (mut native, mut generic) = (Collect::default(), Collect::default());
        self.driver.diff(id(n), base, views, &mut native).unwrap();
        generic_diff(&*self.driver, id(n), base, views, &mut generic).unwrap();
        prop_assert_eq!(native.0, generic.0);
        Ok(())
    }
}

fn id(n: u32) -> LayerId {
    LayerId::new(n).unwrap()
}

fn equal(factory: &dyn Factory, place: &Path, cases: u32) {
    let some = |most| proptest::collection::vec(work(), 0..most);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(base in some(25), middle in some(15), top in some(15))| {
        let stage = Stage::new(factory, place);
        for (n, work) in [(1, &base), (2, &middle), (3, &top)] {
            stage.layer(n, work);
            stage.compare(n)?;
            let _ = stage.driver.commit(id(n), LayerId::new(n - 1), &Joints::default()).unwrap();
            stage.compare(n)?;
        }
        prop_assert!(stage.driver.check(id(3)).unwrap().is_empty());
        stage.end(3);
    });
}

#[test]
fn root_native_diff_equals_generic_diff_on_overlay() {
    if !rustix::process::geteuid().is_root() {
        skip!("it mounts overlays");
    }
    equal(&vellum_driver_overlay::FACTORY, &std::env::temp_dir(), 48);
}

#[test]
fn loop_native_diff_equals_generic_diff_on_btrfs() {
    if !rustix::process::geteuid().is_root() {
        skip!("it makes subvolumes");
    }
    let scratch = match Scratch::new(Kind::Btrfs) {
        Ok(scratch) => scratch,
        Err(error) => skip!("{error}"),
    };
    equal(&vellum_driver_btrfs::FACTORY, scratch.path(), 24);
    scratch.close().unwrap_or_else(|error| panic!("{error}"));
}

/// Subvolumes that a container makes inside its root are seen, told, copied, committed and removed with what is in them.
#[test]
fn loop_subvolumes_inside_a_layer_are_kept_on_btrfs() {
    if !rustix::process::geteuid().is_root() {
        skip!("it makes subvolumes");
    }
    let scratch = match Scratch::new(Kind::Btrfs) {
        Ok(scratch) => scratch,
        Err(error) => skip!("{error}"),
    };
    let stage = Stage::new(&vellum_driver_btrfs::FACTORY, scratch.path());
    stage.layer(1, &[Work::MakeDir(0, 0), Work::Write(0, 1, 3)]);
    let _ = stage.driver.commit(id(1), None, &Joints::default()).unwrap();
    let make = |n: u32| {
        stage.driver.create(id(n), &CreateSpec { parent: LayerId::new(1), ..CreateSpec::default() }).unwrap();
        let plan = stage.driver.mounts(id(n), &MountOptions::default()).unwrap();
        let root = stage.mounter.acquire(id(n), &plan).unwrap();
        let below = root.join("a");
        let subvolume = |place: &Path, name: &str| {
            vellum_sys::btrfs::create(fs::File::open(place).unwrap(), std::ffi::OsStr::new(name)).unwrap();
            place.join(name)
        };
        let outer = subvolume(&below, "outer");
        fs::write(outer.join("file"), "in the outer one").unwrap();
        fs::create_dir(outer.join("dir")).unwrap();
        let inner = subvolume(&outer.join("dir"), "inner");
        fs::write(inner.join("file"), "in the inner one").unwrap();
        let _ = stage.mounter.release(id(n)).unwrap();
    };
    let read = |n: u32| {
        let plan =
            stage.driver.mounts(id(n), &MountOptions { read_only: true, ..Default::default() }).unwrap();
        let root = stage.mounter.acquire(id(n), &plan).unwrap();
        let text = |path: &str| fs::read_to_string(root.join("a/outer").join(path)).unwrap();
        let found = (text("file"), text("dir/inner/file"));
        let _ = stage.mounter.release(id(n)).unwrap();
        found
    };
    let whole = ("in the outer one".to_owned(), "in the inner one".to_owned());
    make(2);
    stage.compare_with(2, 1).unwrap();
    stage.driver.copy(id(2), id(3)).unwrap();
    assert_eq!(read(3), whole);
    stage.compare_with(3, 1).unwrap();
    let _ = stage.driver.commit(id(2), LayerId::new(1), &Joints::default()).unwrap();
    assert_eq!(read(2), whole);
    assert!(stage.driver.check(id(2)).unwrap().is_empty());
    stage.driver.create(id(4), &CreateSpec { parent: LayerId::new(2), ..CreateSpec::default() }).unwrap();
    assert_eq!(read(4), whole, "a child has what is in them");
    // One that is removed with subvolumes inside.
    make(5);
    stage.end(5);
    scratch.close().unwrap_or_else(|error| panic!("{error}"));
}
