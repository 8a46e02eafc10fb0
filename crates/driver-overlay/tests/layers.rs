//! Layers of the overlay driver on disk: joins, renames, deep trees, copies, removal.

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::target::{Joints, LayerPath};
use vellum_driver::sinks::Changes;
use vellum_driver::{
    Ability, Change, Changed, CreateSpec, Driver, DriverConfig, ErrorKind, MountOption, MountOptions, Views,
    generic_diff,
};
use vellum_driver_overlay::Overlay;
use vellum_mount::Mounter;
use vellum_testkit::skip;
use vellum_types::LayerId;

struct Stage {
    driver: Overlay,
    mounter: Mounter,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let driver = Overlay::open(&folder.path().join("overlay"), config).unwrap();
        let mounter = Mounter::new(folder.path().join("run"), folder.path().join("mnt")).unwrap();
        fs::create_dir(folder.path().join("trash")).unwrap();
        Self { driver, mounter, folder }
    }

    fn create(&self, n: u32, parent: Option<u32>) {
        let parent = parent.map(id);
        self.driver.create(id(n), &CreateSpec { parent, ..CreateSpec::default() }).unwrap();
    }

    fn commit(&self, n: u32, parent: Option<u32>, joints: &Joints) -> Changed {
        self.driver.commit(id(n), parent.map(id), joints).unwrap()
    }

    fn diff_folder(&self, n: u32) -> PathBuf {
        self.driver.home().join(id(n).to_string()).join("diff")
    }

    fn mounted<T>(&self, n: u32, work: impl FnOnce(&Path) -> T) -> T {
        let plan = self.driver.mounts(id(n), &MountOptions::default()).unwrap();
        let root = self.mounter.acquire(id(n), &plan).unwrap();
        let result = work(&root);
        let _ = self.mounter.release(id(n)).unwrap();
        result
    }

    fn changes(&self, n: u32, base: Option<u32>) -> Vec<String> {
        let views = &self.mounter as &dyn Views;
        let (mut native, mut generic) = (Changes::default(), Changes::default());
        self.driver.diff(id(n), base.map(id), views, &mut native).unwrap();
        generic_diff(&self.driver, id(n), base.map(id), views, &mut generic).unwrap();
        assert_eq!(native.0, generic.0);
        native.0.iter().map(|(change, path)| format!("{} {path}", Change::letter(*change))).collect()
    }
}

fn id(n: u32) -> LayerId {
    LayerId::new(n).unwrap()
}

fn path(text: &str) -> LayerPath {
    LayerPath::new(text).unwrap()
}

macro_rules! need_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            skip!("it mounts overlays");
        }
    };
}

#[test]
fn root_a_join_takes_owners_and_linked_files_from_below() {
    need_root!();
    let stage = Stage::new();
    stage.create(1, None);
    let base = stage.diff_folder(1);
    fs::create_dir_all(base.join("etc/ssl")).unwrap();
    fs::set_permissions(base.join("etc/ssl"), fs::Permissions::from_mode(0o2711)).unwrap();
    fs::write(base.join("etc/data"), "data").unwrap();
    chown(base.join("etc/ssl"), Some(7), Some(8)).unwrap();
    chown(base.join("etc/data"), Some(9), Some(9)).unwrap();
    assert_eq!(stage.commit(1, None, &Joints::default()), Changed::Yes);
    // In between a file is changed in its owner only, and a directory renamed: the look-up follows both.
    stage.create(2, Some(1));
    stage.mounted(2, |root| {
        chown(root.join("etc/data"), Some(5), Some(5)).unwrap();
        fs::rename(root.join("etc"), root.join("moved")).unwrap();
    });
    let _ = stage.commit(2, Some(1), &Joints::default());
    stage.create(3, None);
    let top = stage.diff_folder(3);
    fs::create_dir_all(top.join("moved/ssl")).unwrap();
    let joints = Joints {
        implied: vec![path("moved"), path("moved/ssl")],
        links: vec![(path("moved/ssl/link"), path("moved/data")), (path("again"), path("moved/data"))],
        ..Joints::default()
    };
    assert_eq!(stage.commit(3, Some(2), &joints), Changed::Yes);
    assert_eq!(stage.commit(3, Some(2), &joints), Changed::No);
    let dir = fs::metadata(top.join("moved/ssl")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.gid()), (0o2711, 7, 8));
    let file = fs::metadata(top.join("moved/data")).unwrap();
    assert_eq!((file.nlink(), file.uid()), (3, 5));
    assert_eq!(fs::read(top.join("again")).unwrap(), b"data");
    assert_eq!(
        stage.changes(3, Some(2)),
        ["A /again", "C /moved", "C /moved/data", "C /moved/ssl", "A /moved/ssl/link"]
    );
    let missing = Joints { implied: vec![], links: vec![(path("x"), path("etc/data"))], ..Joints::default() };
    stage.create(4, None);
    let error = stage.driver.commit(id(4), Some(id(2)), &missing).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[test]
fn root_renamed_and_metacopied_trees_are_told_in_full() {
    need_root!();
    let stage = Stage::new();
    if !stage.driver.capabilities().has(Ability::DirectoryRename) {
        skip!("no redirect_dir here");
    }
    stage.create(1, None);
    let base = stage.diff_folder(1);
    fs::create_dir_all(base.join("a/b")).unwrap();
    fs::write(base.join("a/b/f"), "f").unwrap();
    fs::write(base.join("a/g"), "g").unwrap();
    fs::create_dir(base.join("gone")).unwrap();
    fs::write(base.join("gone/x"), "x").unwrap();
    let _ = stage.commit(1, None, &Joints::default());
    stage.create(2, Some(1));
    assert!(stage.changes(2, Some(1)).is_empty());
    stage.mounted(2, |root| {
        fs::rename(root.join("a"), root.join("z")).unwrap();
        fs::write(root.join("z/b/new"), "").unwrap();
        chown(root.join("z/g"), Some(3), None).unwrap();
        fs::remove_dir_all(root.join("gone")).unwrap();
        fs::create_dir(root.join("gone")).unwrap();
    });
    assert_eq!(
        stage.changes(2, Some(1)),
        ["D /a", "C /gone", "D /gone/x", "A /z", "A /z/b", "A /z/b/f", "A /z/b/new", "A /z/g"]
    );
}

#[test]
fn root_deeper_trees_than_descriptors_are_walked() {
    need_root!();
    let stage = Stage::new();
    stage.create(1, None);
    let mut dir =
        rustix::fs::open(stage.diff_folder(1), rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    rustix::fs::mknodat(&dir, "f", FileType::RegularFile, Mode::RUSR, 0).unwrap();
    assert_eq!(stage.changes(1, None).len(), 1501);
    let _ = stage.commit(1, None, &Joints::default());
    stage.create(2, Some(1));
    stage.create(3, None);
    let deep = ["d"; 1500].join("/");
    stage.mounted(2, |root| fs::remove_file(root.join(&deep).join("f")).unwrap());
    assert_eq!(stage.changes(2, Some(1)).len(), 1501);
}

#[test]
fn root_layers_come_whole_and_go_whole() {
    need_root!();
    let stage = Stage::new();
    let trash = stage.folder.path().join("trash");
    stage.create(21, None);
    assert_eq!(stage.driver.create(id(21), &CreateSpec::default()).unwrap_err().kind, ErrorKind::Exists);
    let on = |n| CreateSpec { parent: Some(id(n)), ..CreateSpec::default() };
    assert_eq!(stage.driver.create(id(2), &on(21)).unwrap_err().kind, ErrorKind::NotCommitted);
    assert_eq!(stage.driver.create(id(2), &on(99)).unwrap_err().kind, ErrorKind::NotFound);
    let _ = stage.commit(21, None, &Joints::default());
    stage.create(2, Some(21));
    stage.mounted(2, |root| fs::write(root.join("f"), "1").unwrap());
    stage.driver.copy(id(2), id(3)).unwrap();
    assert_eq!(stage.driver.stat(id(3)).unwrap().unwrap().parent, Some(id(21)));
    stage.mounted(3, |root| assert_eq!(fs::read(root.join("f")).unwrap(), b"1"));
    for n in [21, 2, 3] {
        assert!(stage.driver.check(id(n)).unwrap().is_empty());
        stage.driver.sync(id(n)).unwrap();
    }
    // Half made: no record.
    fs::create_dir(stage.driver.home().join("9")).unwrap();
    let mut seen = Vec::new();
    stage
        .driver
        .walk(&mut |id, info| {
            seen.push((id.get(), info.map_err(|error| error.kind).map(|info| info.kind)));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.len(), 4);
    assert!(seen.contains(&(9, Err(ErrorKind::Damaged))));
    for n in [3, 2, 9, 21] {
        assert_eq!(stage.driver.remove(id(n), &trash).unwrap(), Changed::Yes);
        assert_eq!(stage.driver.remove(id(n), &trash).unwrap(), Changed::No);
        let trashed = trash.join(format!("overlay-{}-0", id(n)));
        stage.driver.purge(&trashed).unwrap();
        stage.driver.purge(&trashed).unwrap();
        assert!(rustix::fs::statat(CWD, &trashed, AtFlags::SYMLINK_NOFOLLOW).is_err());
    }
    assert_eq!(fs::read_dir(stage.driver.home().join("L")).unwrap().count(), 0);
}

#[test]
fn root_a_volatile_layer_is_ordinary_after_a_sync() {
    need_root!();
    let stage = Stage::new();
    stage.create(1, None);
    let plan =
        stage.driver.mounts(id(1), &MountOptions { volatile: true, ..MountOptions::default() }).unwrap();
    let _ = stage.mounter.acquire(id(1), &plan).unwrap();
    let _ = stage.mounter.release(id(1)).unwrap();
    stage.driver.sync(id(1)).unwrap();
    stage.mounted(1, |root| fs::write(root.join("f"), "").unwrap());
}

#[test]
fn root_what_others_mount_has_whole_files_in_its_own_folder() {
    need_root!();
    let stage = Stage::new();
    stage.create(1, None);
    fs::write(stage.diff_folder(1).join("f"), "content").unwrap();
    let _ = stage.commit(1, None, &Joints::default());
    stage.create(2, Some(1));
    let by_others = MountOptions { by_others: true, ..MountOptions::default() };
    let mut plan = stage.driver.mounts(id(2), &by_others).unwrap();
    // As BuildKit does it.
    for option in &mut plan.root.options {
        if let MountOption::Text(word, value) = option
            && word == "redirect_dir"
        {
            "off".clone_into(value);
        }
    }
    let root = stage.mounter.acquire(id(2), &plan).unwrap();
    chown(root.join("f"), Some(7), Some(7)).unwrap();
    let _ = stage.mounter.release(id(2)).unwrap();
    assert_eq!(fs::read_to_string(stage.diff_folder(2).join("f")).unwrap(), "content");
}

#[test]
fn root_five_hundred_layers_are_the_most() {
    need_root!();
    let stage = Stage::new();
    let most = u32::try_from(stage.driver.capabilities().limit(Ability::MaxLayers).unwrap()).unwrap();
    for n in 1..most {
        stage.create(n, (n > 1).then(|| n - 1));
        fs::write(stage.diff_folder(n).join(format!("f{n}")), "").unwrap();
        let _ = stage.commit(n, (n > 1).then(|| n - 1), &Joints::default());
    }
    stage.create(most, Some(most - 1));
    stage.mounted(most, |root| {
        assert_eq!(fs::read_dir(root).unwrap().count(), most as usize - 1);
        fs::remove_file(root.join("f1")).unwrap();
    });
    assert_eq!(stage.changes(most, Some(most - 1)), ["D /f1"]);
    let _ = stage.commit(most, Some(most - 1), &Joints::default());
    let on_it = CreateSpec { parent: Some(id(most)), ..CreateSpec::default() };
    let error = stage.driver.create(id(most + 1), &on_it).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TooDeep);
    assert!(error.hint.is_some());
    let classic = stage.driver.mounts(id(most), &MountOptions::default()).unwrap().classic().unwrap();
    let short = classic[0].options[0].replace(&format!("{}/L/", stage.driver.home().display()), "");
    assert!(short.len() < 3000, "{}", short.len());
}
