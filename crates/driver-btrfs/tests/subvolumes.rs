//! Subvolumes that a container makes inside of its root: deep ones, read-only ones, many, and snapshots of the root itself.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::target::Joints;
use vellum_driver::sinks::Changes;
use vellum_driver::{Change, CreateSpec, Driver, DriverConfig, Views, generic_diff};
use vellum_driver_btrfs::Btrfs;
use vellum_mount::Mounter;
use vellum_sys::btrfs::{self, ROOT_TREE, Range, item};
use vellum_testkit::scratch::{Kind, Scratch, Unavailable};
use vellum_testkit::skip;
use vellum_types::LayerId;

struct Stage {
    driver: Btrfs,
    mounter: Mounter,
    scratch: Scratch,
}

fn id(n: u32) -> LayerId {
    LayerId::new(n).unwrap()
}

impl Stage {
    fn new() -> Result<Self, Unavailable> {
        let scratch = Scratch::sized(Kind::Btrfs, 512)?;
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir(at("trash"))?;
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let driver = Btrfs::open(&at("home"), config).unwrap();
        let mounter = Mounter::new(at("run"), at("mnt")).unwrap();
        let stage = Self { driver, mounter, scratch };
        stage.create(1, None);
        fs::write(stage.tree(1).join("base"), "of the image").unwrap();
        stage.commit(1, None);
        Ok(stage)
    }

    fn create(&self, n: u32, parent: Option<u32>) {
        self.driver.create(id(n), &CreateSpec { parent: parent.map(id), ..CreateSpec::default() }).unwrap();
    }

    fn commit(&self, n: u32, parent: Option<u32>) {
        let _ = self.driver.commit(id(n), parent.map(id), &Joints::default()).unwrap();
        assert!(self.driver.check(id(n)).unwrap().is_empty());
    }

    fn tree(&self, n: u32) -> PathBuf {
        self.driver.home().join(id(n).to_string()).join("tree")
    }

    /// What the driver tells, which is what a walk of both trees tells.
    fn changes(&self, n: u32) -> Vec<String> {
        let views = &self.mounter as &dyn Views;
        let (mut native, mut generic) = (Changes::default(), Changes::default());
        self.driver.diff(id(n), Some(id(1)), views, &mut native).unwrap();
        generic_diff(&self.driver, id(n), Some(id(1)), views, &mut generic).unwrap();
        assert_eq!(native.0, generic.0);
        native.0.iter().map(|(change, path)| format!("{} {path}", Change::letter(*change))).collect()
    }

    fn remove(&self, n: u32) {
        let trash = self.scratch.path().join("trash");
        let _ = self.driver.remove(id(n), &trash).unwrap();
        for entry in fs::read_dir(&trash).unwrap() {
            self.driver.purge(&entry.unwrap().path()).unwrap();
        }
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }

    /// How many subvolumes there are on the file system that are not being deleted.
    fn subvolumes(&self) -> usize {
        let root = File::open(self.scratch.path()).unwrap();
        let mut count = 0;
        let range = Range {
            tree: ROOT_TREE,
            from: (256, item::ROOT_REF),
            to: (u64::MAX - 256, item::ROOT_REF),
            since: 0,
        };
        btrfs::search(&root, Range { from: (5, item::ROOT_REF), ..range }, &mut |item| {
            count += usize::from(item.kind == item::ROOT_REF);
            Ok(())
        })
        .unwrap();
        count
    }
}

macro_rules! stage {
    () => {
        match Stage::new() {
            Ok(stage) => stage,
            Err(Unavailable::Missing(reason)) => skip!("{reason}"),
            Err(error) => panic!("{error}"),
        }
    };
}

fn subvolume(folder: &Path, name: &str) -> PathBuf {
    btrfs::create(File::open(folder).unwrap(), OsStr::new(name)).unwrap();
    folder.join(name)
}

fn set_read_only(path: &Path) {
    btrfs::set_read_only(File::open(path).unwrap(), true).unwrap();
}

/// Four, each in a folder of the one before, the second and the last read-only.
fn make_deep(root: &Path) {
    let mut made = vec![subvolume(root, "sub0")];
    for n in 1..4 {
        let folder = made[n - 1].join("dir");
        fs::create_dir(&folder).unwrap();
        made.push(subvolume(&folder, &format!("sub{n}")));
    }
    for (n, path) in made.iter().enumerate() {
        fs::write(path.join("file"), format!("in {n}")).unwrap();
        // Each has inodes of the same numbers.
        fs::hard_link(path.join("file"), path.join("link")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o710 + n as u32)).unwrap();
        chown(path, Some(1000), Some(1000 + n as u32)).unwrap();
    }
    set_read_only(&made[1]);
    set_read_only(&made[3]);
}

fn assert_deep(root: &Path) {
    let mut path = root.join("sub0");
    for n in 0..4 {
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), format!("in {n}"), "{}", path.display());
        let inode = |name: &str| fs::metadata(path.join(name)).unwrap().ino();
        assert!(inode("file") == inode("link"), "{}", path.display());
        let meta = fs::metadata(&path).unwrap();
        let wanted = (0o710 + n, 1000, 1000 + n);
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), wanted, "{}", path.display());
        path = path.join(format!("dir/sub{}", n + 1));
    }
}

#[test]
fn loop_deep_and_read_only_subvolumes_are_told_copied_committed_and_removed() {
    let stage = stage!();
    let before = stage.subvolumes();
    stage.create(2, Some(1));
    make_deep(&stage.tree(2));
    assert_eq!(stage.subvolumes(), before + 5);
    let told = stage.changes(2);
    assert_eq!(told.len(), 15, "{told:?}");
    assert!(told.contains(&"A /sub0/dir/sub1/dir/sub2/dir/sub3/file".to_owned()), "{told:?}");

    stage.driver.copy(id(2), id(3)).unwrap();
    assert_deep(&stage.tree(3));
    assert_eq!(stage.changes(3), told);
    assert_eq!(stage.subvolumes(), before + 6, "a copy has folders in their place");

    stage.commit(2, Some(1));
    assert_deep(&stage.tree(2));
    assert_eq!(stage.changes(2), told);
    assert_eq!(stage.subvolumes(), before + 2, "a committed layer has folders in their place");
    stage.create(4, Some(2));
    assert_deep(&stage.tree(4));
    make_deep(&{
        let below = stage.tree(4).join("below");
        fs::create_dir(&below).unwrap();
        below
    });
    for n in [4, 3, 2] {
        stage.remove(n);
    }
    assert_eq!(stage.subvolumes(), before);
    stage.scratch.close().unwrap();
}

#[test]
fn loop_many_subvolumes_and_snapshots_of_the_root_itself_are_removed() {
    let stage = stage!();
    let before = stage.subvolumes();
    stage.create(2, Some(1));
    let root = stage.tree(2);
    for n in 0..60 {
        let name = format!("sub{n}");
        btrfs::snapshot(File::open(&root).unwrap(), File::open(&root).unwrap(), OsStr::new(&name)).unwrap();
        if n % 2 == 0 {
            set_read_only(&root.join(name));
        }
    }
    // One that was moved away since, into another.
    fs::create_dir(root.join("sub1/moved")).unwrap();
    fs::rename(root.join("sub3"), root.join("sub1/moved/sub3")).unwrap();
    // A container whose own root is read-only.
    set_read_only(&root);
    assert_eq!(stage.subvolumes(), before + 61);
    stage.remove(2);
    assert_eq!(stage.subvolumes(), before);
    assert_eq!(fs::read_to_string(stage.tree(1).join("base")).unwrap(), "of the image");
    stage.scratch.close().unwrap();
}

/// The two states in which a killed commit can leave a subvolume that it makes a folder of.
#[test]
fn loop_a_commit_goes_on_where_another_was_killed() {
    let stage = stage!();
    stage.create(2, Some(1));
    let root = stage.tree(2);
    for name in ["begun", "exchanged"] {
        let made = subvolume(&root, name);
        fs::write(made.join("file"), name).unwrap();
    }
    let folder = root.join("begun.vellum-flat");
    fs::create_dir_all(folder.join("half")).unwrap();
    fs::rename(root.join("exchanged"), root.join("exchanged.vellum-flat")).unwrap();
    fs::create_dir(root.join("exchanged")).unwrap();
    fs::write(root.join("exchanged/file"), "copied").unwrap();
    // One that a container named so itself.
    fs::write(subvolume(&root, "own.vellum-flat").join("file"), "own").unwrap();
    stage.commit(2, Some(1));
    let mut names: Vec<_> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["base", "begun", "exchanged", "own.vellum-flat"]);
    let text = |name: &str| fs::read_to_string(root.join(name).join("file")).unwrap();
    assert_eq!(["begun", "exchanged", "own.vellum-flat"].map(text), ["begun", "copied", "own"]);
    stage.scratch.close().unwrap();
}
