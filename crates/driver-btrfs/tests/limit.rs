//! Size limits of layers, and the quota groups that keep them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::target::Joints;
use vellum_driver::{CreateSpec, Driver, DriverConfig, ErrorKind};
use vellum_driver_btrfs::Btrfs;
use vellum_sys::btrfs;
use vellum_sys::btrfs::quota::{self, Group, Limits, Mode};
use vellum_testkit::scratch::{Kind, Scratch, Unavailable};
use vellum_testkit::skip;
use vellum_types::LayerId;

const MIB: usize = 1 << 20;

struct Stage {
    driver: Btrfs,
    scratch: Scratch,
}

impl Stage {
    fn new() -> Result<Self, Unavailable> {
        let scratch = Scratch::sized(Kind::Btrfs, 512)?;
        fs::create_dir(scratch.path().join("trash"))?;
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let driver = Btrfs::open(&scratch.path().join("home"), config).unwrap();
        Ok(Self { driver, scratch })
    }

    fn create(&self, n: u32, parent: Option<u32>, size: Option<&str>) {
        let options: Vec<_> = size.iter().map(|size| ("size".to_owned(), (*size).to_owned())).collect();
        let parent = parent.map(id);
        self.driver.create(id(n), &CreateSpec { parent, view: false, options: &options }).unwrap();
    }

    fn commit(&self, n: u32, parent: Option<u32>) {
        let _ = self.driver.commit(id(n), parent.map(id), &Joints::default()).unwrap();
    }

    /// A committed base layer with ten megabytes.
    fn base(&self) {
        self.create(1, None, None);
        write(&self.tree(1).join("file"), 10).unwrap();
        self.commit(1, None);
    }

    fn tree(&self, n: u32) -> PathBuf {
        self.driver.home().join(id(n).to_string()).join("tree")
    }

    fn root(&self) -> File {
        File::open(self.scratch.path()).unwrap()
    }

    fn group(&self, path: &Path) -> Group {
        Group::of(btrfs::info(File::open(path).unwrap()).unwrap().tree)
    }

    fn groups(&self) -> Vec<Group> {
        quota::all(self.root()).unwrap()
    }

    /// A subvolume of somebody else's, in a group of somebody else's, with limits.
    fn strangers(&self) -> Group {
        btrfs::create(self.root(), OsStr::new("strangers")).unwrap();
        let group = self.group(&self.scratch.path().join("strangers"));
        let theirs = Group::at(1, 100);
        quota::create(self.root(), theirs).unwrap();
        quota::put_into(self.root(), group, theirs).unwrap();
        quota::limit(self.root(), group, STRANGERS).unwrap();
        group
    }

    fn assert_strangers_are_as_they_were(&self, group: Group) {
        assert_eq!(quota::limits(self.root(), group).unwrap(), Some(STRANGERS));
        assert_eq!(quota::groups_of(self.root(), group).unwrap(), [Group::at(1, 100)]);
    }

    fn remove(&self, n: u32) {
        let trash = self.scratch.path().join("trash");
        let _ = self.driver.remove(id(n), &trash).unwrap();
        for entry in fs::read_dir(&trash).unwrap() {
            self.driver.purge(&entry.unwrap().path()).unwrap();
        }
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
    }
}

const STRANGERS: Limits = Limits { referenced: Some(77 << 20), exclusive: None };

fn id(n: u32) -> LayerId {
    LayerId::new(n).unwrap()
}

fn write(path: &Path, mib: usize) -> io::Result<()> {
    fs::write(path, vec![0x5a; mib * MIB])
}

fn assert_over_quota(result: io::Result<()>) {
    let error = result.expect_err("more than the limit was written");
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded, "{error}");
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

#[test]
fn loop_quotas_stay_off_until_a_size_is_asked_for() {
    let stage = stage!();
    stage.base();
    stage.create(2, Some(1), None);
    stage.remove(2);
    assert_eq!(quota::mode(stage.root()).unwrap(), None);
    for (name, value, kind) in [
        ("size", "much", ErrorKind::Invalid),
        ("size", "0", ErrorKind::Invalid),
        ("inodes", "10", ErrorKind::Unsupported),
    ] {
        let options = [(name.to_owned(), value.to_owned())];
        let spec = CreateSpec { parent: Some(id(1)), view: false, options: &options };
        assert_eq!(stage.driver.create(id(2), &spec).unwrap_err().kind, kind, "{name}={value}");
    }
    assert_eq!(quota::mode(stage.root()).unwrap(), None);
    stage.create(2, Some(1), Some("20M"));
    assert!(quota::mode(stage.root()).unwrap().is_some());
    stage.scratch.close().unwrap();
}

#[test]
fn loop_a_layer_with_a_size_cannot_outgrow_it() {
    let stage = stage!();
    stage.base();
    stage.create(2, Some(1), Some("20M"));
    stage.create(3, Some(1), None);
    write(&stage.tree(2).join("small"), 10).unwrap();
    assert_over_quota(write(&stage.tree(2).join("big"), 20));
    write(&stage.tree(3).join("big"), 40).unwrap();
    // What was written over counts once it is on the disk.
    fs::remove_file(stage.tree(2).join("big")).unwrap();
    btrfs::sync(stage.root()).unwrap();
    let facts = stage.driver.metadata(id(2)).unwrap();
    let fact =
        |name: &str| -> usize { facts.iter().find(|(found, _)| found == name).unwrap().1.parse().unwrap() };
    assert_eq!(fact("Size limit"), 20 * MIB);
    assert!((10 * MIB..11 * MIB).contains(&fact("Size counted")), "{facts:?}");
    assert!(stage.driver.check(id(2)).unwrap().is_empty());

    // A committed layer has no limit, nor have layers on it.
    stage.commit(2, Some(1));
    assert!(stage.driver.check(id(2)).unwrap().is_empty());
    stage.create(4, Some(2), None);
    write(&stage.tree(4).join("big"), 40).unwrap();
    stage.scratch.close().unwrap();
}

#[test]
fn loop_copies_and_subvolumes_inside_count_for_the_same_limit() {
    let stage = stage!();
    stage.base();
    stage.create(2, Some(1), Some("30M"));
    if quota::mode(stage.root()).unwrap() != Some(Mode::Simple) {
        skip!("this kernel has no simple quotas");
    }
    btrfs::create(File::open(stage.tree(2)).unwrap(), OsStr::new("inside")).unwrap();
    write(&stage.tree(2).join("inside/file"), 10).unwrap();
    stage.driver.copy(id(2), id(3)).unwrap();
    write(&stage.tree(2).join("file"), 10).unwrap();
    assert_over_quota(write(&stage.tree(2).join("inside/more"), 15));
    fs::remove_file(stage.tree(2).join("inside/more")).unwrap();
    btrfs::sync(stage.root()).unwrap();
    assert_over_quota(write(&stage.tree(3).join("more"), 15));
    assert!(stage.driver.check(id(3)).unwrap().is_empty());
    // Going back to a save point: the container's layer goes, and the copy of the save point is limited as it was.
    stage.driver.copy(id(3), id(4)).unwrap();
    stage.remove(2);
    assert_over_quota(write(&stage.tree(4).join("more"), 40));
    // Full up to the limit it can be committed, and removed, as 2 was with a subvolume inside.
    stage.commit(4, Some(1));
    stage.remove(4);
    stage.scratch.close().unwrap();
}

#[test]
fn loop_no_group_is_left_behind_and_no_other_is_touched() {
    let stage = stage!();
    stage.base();
    stage.create(2, Some(1), Some("100M"));
    let simple = quota::mode(stage.root()).unwrap() == Some(Mode::Simple);
    let strangers = stage.strangers();
    stage.create(3, Some(1), Some("100M"));
    let before = stage.groups();
    stage.create(4, Some(1), Some("100M"));
    let inside = stage.tree(4).join("dir");
    fs::create_dir(&inside).unwrap();
    btrfs::create(File::open(&inside).unwrap(), OsStr::new("inside")).unwrap();
    write(&inside.join("inside/file"), 5).unwrap();
    stage.driver.copy(id(4), id(5)).unwrap();
    assert!(stage.groups().len() >= before.len() + if simple { 4 } else { 3 });
    // What the copy has of it still counts.
    stage.remove(4);
    if simple {
        assert!(stage.groups().len() > before.len() + 1);
    }
    stage.remove(5);
    // One that went while others had what it wrote is found by a later removal.
    btrfs::sync(stage.root()).unwrap();
    stage.create(6, Some(1), None);
    stage.remove(6);
    assert_eq!(stage.groups(), before);
    stage.assert_strangers_are_as_they_were(strangers);
    assert!(stage.driver.check(id(2)).unwrap().is_empty());
    assert!(stage.driver.check(id(3)).unwrap().is_empty());
    assert_over_quota(write(&stage.tree(3).join("big"), 120));
    stage.scratch.close().unwrap();
}

#[test]
fn loop_full_quotas_that_are_on_are_taken_as_they_are() {
    let stage = stage!();
    stage.base();
    quota::enable(stage.root(), Mode::Full).unwrap();
    stage.create(2, Some(1), Some("20M"));
    assert_eq!(quota::mode(stage.root()).unwrap(), Some(Mode::Full));
    let strangers = stage.strangers();
    let before = stage.groups();
    stage.create(3, Some(1), Some("20M"));
    write(&stage.tree(3).join("small"), 10).unwrap();
    stage.driver.copy(id(3), id(4)).unwrap();
    for n in [3, 4] {
        assert_over_quota(write(&stage.tree(n).join("big"), 15));
        assert!(stage.driver.check(id(n)).unwrap().is_empty());
        stage.remove(n);
    }
    assert_eq!(stage.groups(), before);
    stage.assert_strangers_are_as_they_were(strangers);
    stage.commit(2, Some(1));
    let group = stage.group(&stage.tree(2));
    assert_eq!(quota::limits(stage.root(), group).unwrap(), Some(Limits::default()));
    stage.scratch.close().unwrap();
}

#[test]
fn loop_a_limit_that_is_not_kept_any_more_is_found_by_check() {
    let stage = stage!();
    stage.base();
    stage.create(2, Some(1), Some("20M"));
    quota::disable(stage.root()).unwrap();
    let findings = stage.driver.check(id(2)).unwrap();
    assert!(findings.len() == 1 && findings[0].contains("quotas"), "{findings:?}");
    stage.driver.copy(id(2), id(3)).unwrap();
    stage.remove(2);
    stage.scratch.close().unwrap();
}
