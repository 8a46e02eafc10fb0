//! A process is killed at every fault point, one after the other; the store is then sound, and leaks nothing.
//!
//! The test starts its own executable again, with the variable of the fault points set. The child does every operation once and
//! notes what was reported as done; the parent opens the store after it.

mod common;

use common::*;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use vellum_driver::MountOptions;
use vellum_store::*;

/// The driver of the child that has a full disk.
const FULL: &str = "VELLUM_TEST_FULL";
const CHILD: &str = "VELLUM_TEST_CHILD";
const LOG: &str = "done";

/// Everything the store can do, in an order in which each step has something to work on.
struct Child {
    dir: PathBuf,
    driver: String,
    store: Arc<Store>,
}

impl Child {
    fn note(&self, what: &str) {
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(self.dir.join(LOG)).unwrap();
        writeln!(log, "{what}").unwrap();
    }

    fn run(dir: &Path, driver: &str) {
        let store = Store::open(&options(dir, driver)).unwrap();
        let child = Self { dir: dir.to_owned(), driver: driver.to_owned(), store: Arc::new(store) };
        child.images();
        child.containers();
        child.front_end();
        child.server();
        child.upkeep();
        drop(child.store);
        Store::rebuild(&options(dir, driver)).unwrap();
        Store::open(&options(dir, driver)).unwrap();
        Store::reset(&options(dir, driver)).unwrap();
    }

    fn images(&self) {
        let store = &self.store;
        store.load_image(Image::simple().input(&["kept", "gone"], true), &Silent).unwrap();
        self.note("load kept");
        store.tag(&Image::simple().id(), &"tagged".parse().unwrap()).unwrap();
        self.note("tag tagged");
        store.load_image(Image::big(3, 2, 20).input(&["big"], false), &Silent).unwrap();
        self.note("load big");
        store.load_image(Image::big(3, 2, 20).input(&["big"], true), &Silent).unwrap();
        store.remove_image("big", false).unwrap();
        self.note("rmi big");
        let flat = Image::simple().tars.remove(0);
        store
            .import(ImportSource::Tar(Box::new(&flat[..])), Some(&"flat".parse().unwrap()), &Silent)
            .unwrap();
        self.note("import flat");
    }

    fn containers(&self) {
        let store = &self.store;
        let create = |name: &str| {
            let options = CreateOptions { name: Some(name.parse().unwrap()), ..CreateOptions::default() };
            let id = store.create_container(&Image::simple().id(), options).unwrap();
            self.note(&format!("create {name}"));
            id
        };
        let id = create("first");
        let path = store.mount(&id, &MountOptions::default()).unwrap();
        std::fs::write(path.join("new"), pattern(5000)).unwrap();
        store.snapshot(&id, Some(&"point".parse().unwrap())).unwrap();
        self.note("snapshot point");
        let name = Some("committed".parse().unwrap());
        store.commit(&id, &CommitOptions { name, ..CommitOptions::default() }).unwrap();
        self.note("commit committed");
        std::fs::write(path.join("new"), b"other").unwrap();
        let _ = store.umount(&id, true, false).unwrap();
        store.rollback(&id, None).unwrap();
        self.note("rollback");
        store.remove_save_point(&id, &"point".parse().unwrap()).unwrap();
        self.note("unsave");
        let second = create("second");
        store.remove_container(&second, false).unwrap();
        self.note("rm second");
    }

    fn front_end(&self) {
        let snapshots = self.store.snapshots("test");
        snapshots.prepare("active", None, &Labels::new()).unwrap();
        snapshots.commit("held", "active", None, &Labels::new()).unwrap();
        snapshots.prepare("removed", Some("held"), &Labels::new()).unwrap();
        snapshots.remove("removed").unwrap();
        let chain = self.store.image_layers(&Image::simple().id()).unwrap()[0].chain_id.to_string();
        assert!(snapshots.adopt(&chain, None, &Labels::new()).unwrap());
        self.note("adopt");
        self.graph();
        snapshots.update("held", &Labels::from([("a".to_owned(), "b".to_owned())])).unwrap();
        snapshots.remove(&chain).unwrap();
        self.note("unadopt");
    }

    fn server(&self) {
        let keeper = Keeper::start(Arc::clone(&self.store)).unwrap();
        let snapshots = self.store.snapshots("test");
        snapshots.prepare("served", None, &Labels::new()).unwrap();
        drop(keeper);
    }

    fn graph(&self) {
        let graph = self.store.graph("docker");
        graph.record_home("/var/lib/docker/vellum").unwrap();
        let tars = Image::simple().tars;
        let mut parent = None;
        for (id, tar) in ["one", "two"].iter().zip(&tars) {
            graph.create(id, parent, &[]).unwrap();
            graph.apply(id, parent, &mut &tar[..]).unwrap();
            self.note(&format!("apply {id}"));
            parent = Some(*id);
        }
        graph.create("c-init", parent, &[]).unwrap();
        let path = graph.get("c-init", None).unwrap();
        std::fs::write(path.join("init"), b"").unwrap();
        graph.put("c-init").unwrap();
        graph.create("c", Some("c-init"), &[]).unwrap();
        graph.get("c", None).unwrap();
        graph.remove("c").unwrap();
        self.note("gone c");
        graph.create("later", parent, &[]).unwrap();
        graph.get("later", None).unwrap();
        graph.put("later").unwrap();
    }

    fn upkeep(&self) {
        let store = &self.store;
        // One that nothing has synced yet when check looks at it.
        store.create_container(&Image::simple().id(), CreateOptions::default()).unwrap();
        let orphan = vellum_types::LayerId::new(77_777).unwrap().to_string();
        std::fs::create_dir(store.data().join("layers").join(&self.driver).join(orphan)).unwrap();
        store.gc(false).unwrap();
        let record = format!("images/{}/{}.json", self.driver, Image::simple().id().digest().hex());
        std::fs::remove_file(store.data().join(record)).unwrap();
        let layer = store.image_layers(&Image::simple().id()).unwrap()[0].id;
        std::fs::remove_file(store.data().join(format!("layers/{}/{layer}/layer.json", self.driver)))
            .unwrap();
        let findings = store.check(true, &Silent).unwrap();
        assert!(findings.iter().all(|finding| finding.repaired.is_some()), "{findings:#?}");
        let layers = store.image_layers(&Image::simple().id()).unwrap();
        std::fs::write(
            store.data().join("layers").join(&self.driver).join(layers[0].id.to_string()).join("recipe"),
            b"bad",
        )
        .unwrap();
        let findings = store.check(true, &Silent).unwrap();
        assert!(findings.iter().all(|finding| finding.repaired.is_some()), "{findings:#?}");
        let digest = layers[1].blob.as_ref().unwrap().digest.unwrap();
        std::fs::write(store.data().join("blobs/sha256").join(digest.hex()), b"bad").unwrap();
        let findings = store.check(true, &Silent).unwrap();
        assert!(findings.iter().all(|finding| finding.repaired.is_some()), "{findings:#?}");
        // A layer that is lost altogether, mended by loading the image again.
        let lost = store.data().join(&self.driver).join(layers[2].id.to_string());
        unlocked(&lost.join("tree"), || std::fs::remove_dir_all(&lost).unwrap());
        store.load_image(Image::simple().input(&["kept"], true), &Silent).unwrap();
        self.note("mended");
    }
}

/// What the child is: this very test, with a variable.
#[test]
fn child_of_the_fault_test() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let (driver, dir) = text.split_once(':').unwrap();
    Child::run(Path::new(dir), driver);
}

/// Runs the child; true when it was killed, false when it came to its end.
fn run_child(dir: &Path, driver: &str, fault: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_of_the_fault_test", "--nocapture"])
        .env(CHILD, format!("{driver}:{}", dir.display()))
        .env(vellum_sys::fault::VARIABLE, fault)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    match (status.signal(), status.code()) {
        (Some(9), _) => true,
        (_, Some(0)) => false,
        _ => panic!("the child ended with {status} at {fault}"),
    }
}

fn done(dir: &Path) -> BTreeSet<String> {
    std::fs::read_to_string(dir.join(LOG)).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What was reported is there; what was not may be, as a whole.
fn assert_kept(store: &Store, done: &BTreeSet<String>, at: &str) {
    let has = |what: &str| done.contains(what);
    for (step, image) in [
        ("load kept", "kept"),
        ("tag tagged", "tagged"),
        ("import flat", "flat"),
        ("commit committed", "committed"),
    ] {
        if has(step) {
            assert!(store.find_image(image).is_ok(), "{image} is lost, killed at {at}");
        }
    }
    if has("rmi big") {
        assert!(store.find_image("big").is_err(), "big is back, killed at {at}");
    }
    if has("create first") {
        let row = store.find_container("first").unwrap();
        let path = store.mount(&row.id, &MountOptions::default()).unwrap();
        if has("rollback") {
            assert_eq!(std::fs::read(path.join("new")).unwrap(), pattern(5000), "killed at {at}");
        }
        let _ = store.umount(&row.id, true, false).unwrap();
    }
    if has("adopt") && !has("gone c") {
        let chain = store.image_layers(&Image::simple().id()).unwrap()[0].chain_id.to_string();
        assert!(store.snapshots("test").stat(&chain).is_ok(), "the adopted one is lost, killed at {at}");
    }
    if has("rm second") {
        assert!(store.find_container("second").is_err(), "second is back, killed at {at}");
    }
    for image in store.images().unwrap() {
        store.image_config(&image.id).unwrap();
        for layer in store.image_layers(&image.id).unwrap() {
            store.layer_tar(layer.id, &mut std::io::sink()).unwrap();
        }
    }
}

/// After the kill: opened, checked, compared, collected, used again.
fn look_after(place: &Place, at: &str) {
    let at = at.trim_end_matches(":2");
    let dir = place.dir.as_ref().unwrap().path();
    let done = done(dir);
    if at.starts_with("store.reset") {
        return;
    }
    let store = match Store::open(&place.options()) {
        Ok(store) => store,
        Err(e) if e.code() == Code::Damaged && at.starts_with("store.rebuild") => {
            Store::rebuild(&place.options()).unwrap();
            place.open()
        }
        Err(e) => panic!("killed at {at}: {}", told(&e)),
    };
    let mends = at.starts_with("store.repair") || ["store.check.noted", "store.fresh.synced"].contains(&at);
    let mut findings = store.check(mends, &Silent).unwrap();
    if at.starts_with("store.mend.written")
        || at.starts_with("store.mend.synced")
        || at == "store.load.mend-intent"
    {
        // Nothing was decided yet, so the layer is as damaged as it was, and known to be.
        assert!(!findings.is_empty(), "killed at {at}");
        findings.clear();
        store.load_image(Image::simple().input(&["kept"], false), &Silent).unwrap();
    }
    assert!(findings.iter().all(|f| f.repaired.is_some()), "killed at {at}: {findings:#?}");
    assert_clean(&store);
    assert_kept(&store, &done, at);
    store.gc(false).unwrap();
    assert_nothing_to_collect(&store);
    assert_clean(&store);
    assert_no_leak(&store, place, at);
    store.load_image(Image::simple().input(&["again"], false), &Silent).unwrap();
    assert_clean(&store);
}

/// Every folder of a layer is one that the catalog knows, and nothing else lies about.
fn assert_no_leak(store: &Store, place: &Place, at: &str) {
    let known = store.usage().unwrap().metadata.count;
    let names = |folder: &str| -> Vec<String> {
        std::fs::read_dir(part(store, folder))
            .map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default()
    };
    assert_eq!(names(&format!("layers/{}", place.driver)).len(), known, "killed at {at}");
    for folder in ["tmp", "mnt", &format!("trash/{}", place.driver)] {
        assert!(names(folder).is_empty(), "{folder} is not empty, killed at {at}");
    }
    let locks = names("locks");
    assert!(locks.iter().all(|name| !name.starts_with("owner")), "{locks:?}, killed at {at}");
}

/// Whether the driver's way of making containers passes the point: at once, or with an intent.
fn on_the_way_of(driver: &str, fault: &str) -> bool {
    let instant = driver != "vfs";
    match fault.split('.').nth(1) {
        Some("fresh" | "keeper") => instant,
        Some("create" | "prepare" | "later") => !instant,
        // Those of pools have tests of their own.
        Some("pool") => false,
        // Only after a sync that failed; `root_a_log_that_cannot_be_synced…` has it fail.
        Some("log") if fault.ends_with("again") => false,
        _ => true,
    }
}

fn campaign(test: &str, driver: &str) {
    // A layer is mended twice: from a kept blob, and by a load.
    let again =
        FAULT_POINTS.iter().filter(|fault| fault.starts_with("store.mend")).map(|fault| format!("{fault}:2"));
    for fault in FAULT_POINTS.iter().map(|fault| (*fault).to_owned()).chain(again) {
        let fault = &*fault;
        if !on_the_way_of(driver, fault) {
            continue;
        }
        let Some(place) = Place::new(test, driver) else { return };
        let dir = place.dir.as_ref().unwrap().path();
        // A first process dies with an intent, so that the second has something to take over. It dies before the image is there,
        // which is at a place that needs none of the later steps.
        if !fault.starts_with("store.make") {
            assert!(run_child(dir, driver, "store.load.created"));
        }
        assert!(run_child(dir, driver, fault), "no operation passes {fault}");
        look_after(&place, fault);
    }
}

#[test]
fn root_a_process_killed_at_any_point_leaves_a_sound_store_on_overlay() {
    campaign("root_a_process_killed_at_any_point_leaves_a_sound_store_on_overlay", "overlay");
}

#[test]
fn root_a_process_killed_at_any_point_leaves_a_sound_store_on_vfs() {
    campaign("root_a_process_killed_at_any_point_leaves_a_sound_store_on_vfs", "vfs");
}

#[test]
fn root_a_process_killed_at_any_point_leaves_a_sound_store_on_composefs() {
    // Each point wants a file system of its own, which takes minutes; CI kills at random.
    if std::env::var_os("VELLUM_TEST_ALL").is_none() {
        return;
    }
    campaign("root_a_process_killed_at_any_point_leaves_a_sound_store_on_composefs", "composefs");
}

#[test]
fn root_a_process_killed_at_any_point_leaves_a_sound_store_on_btrfs() {
    // Each point wants a file system of its own, which takes minutes; CI kills at random.
    if std::env::var_os("VELLUM_TEST_ALL").is_none() {
        return;
    }
    campaign("root_a_process_killed_at_any_point_leaves_a_sound_store_on_btrfs", "btrfs");
}

/// Every step of what adds to a store.
fn adds(fault: &str) -> bool {
    let operations = [
        "load",
        "keep-blob",
        "create",
        "stage",
        "import",
        "commit",
        "snapshot",
        "copy",
        "rollback",
        "prepare",
    ];
    let added = operations.iter().any(|name| fault.starts_with(&format!("store.{name}.")));
    (added || fault == "store.commit-snapshot.joined" || fault.starts_with("store.mend"))
        && !["store.mend.done", "store.fresh.synced"].contains(&fault)
}

/// What runs out of room at every step that `driver` tells the driver for.
fn full_disks(test: &str, driver: impl Fn(&str) -> Option<&'static str>) {
    for fault in FAULT_POINTS.iter().filter(|fault| adds(fault)) {
        let Some(driver) = driver(fault) else { continue };
        let Some(place) = Place::new(test, driver) else { return };
        let dir = place.dir.as_ref().unwrap().path();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_with_a_full_disk", "--nocapture"])
            .env(CHILD, dir)
            .env(FULL, driver)
            .env(vellum_sys::fault::VARIABLE, format!("{fault}=ENOSPC"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{fault}");
        let store = place.open();
        assert_clean(&store);
        assert_nothing_to_collect(&store);
    }
}

#[test]
fn root_a_full_disk_at_any_point_is_an_error_and_the_store_goes_on() {
    full_disks("root_a_full_disk_at_any_point_is_an_error_and_the_store_goes_on", |fault| {
        Some(if on_the_way_of("overlay", fault) { "overlay" } else { "vfs" })
    });
}

#[test]
fn root_a_full_disk_at_any_point_is_an_error_and_the_store_goes_on_with_btrfs() {
    if std::env::var_os("VELLUM_TEST_ALL").is_none() {
        return;
    }
    full_disks("root_a_full_disk_at_any_point_is_an_error_and_the_store_goes_on_with_btrfs", |fault| {
        on_the_way_of("btrfs", fault).then_some("btrfs")
    });
}

#[test]
fn root_a_full_disk_at_any_point_is_an_error_and_the_store_goes_on_with_composefs() {
    if std::env::var_os("VELLUM_TEST_ALL").is_none() {
        return;
    }
    full_disks("root_a_full_disk_at_any_point_is_an_error_and_the_store_goes_on_with_composefs", |fault| {
        on_the_way_of("composefs", fault).then_some("composefs")
    });
}

#[test]
fn child_with_a_full_disk() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    if dir.contains(':') {
        return;
    }
    let Ok(driver) = std::env::var(FULL) else { return };
    let store = Store::open(&options(Path::new(&dir), &driver)).unwrap();
    let image = Image::simple();
    let failed = std::cell::Cell::new(0);
    // What fails says that the disk is full and leaves nothing, and is done the second time.
    let twice = |what: &str, work: &dyn Fn() -> Result<()>| {
        if let Err(e) = work() {
            assert_eq!(e.code(), Code::Full, "{what}: {}", told(&e));
            failed.set(failed.get() + 1);
            if what != "mend" {
                assert_clean(&store);
                assert_nothing_to_collect(&store);
            }
            work().unwrap_or_else(|e| panic!("{what} again: {}", told(&e)));
        }
    };
    twice("load", &|| store.load_image(image.input(&["x"], false), &Silent).map(drop));
    twice("keep", &|| store.load_image(image.input(&["x"], true), &Silent).map(drop));
    twice("create", &|| store.create_container(&image.id(), CreateOptions::default()).map(drop));
    let container = store.containers().unwrap()[0].id;
    let name = CommitOptions { name: Some("made".parse().unwrap()), ..CommitOptions::default() };
    twice("commit", &|| store.commit(&container, &name).map(drop));
    twice("import", &|| {
        store.import(ImportSource::Tar(Box::new(&image.tars[0][..])), None, &Silent).map(drop)
    });
    twice("snapshot", &|| store.snapshot(&container, None).map(drop));
    twice("rollback", &|| store.rollback(&container, None).map(drop));
    let snapshots = store.snapshots("ns");
    twice("prepare", &|| match snapshots.stat("k") {
        Ok(_) => Ok(()),
        Err(_) => snapshots.prepare("k", None, &Labels::new()).map(drop),
    });
    twice("commit-snapshot", &|| snapshots.commit("held", "k", None, &Labels::new()).map(drop));
    let lost = store.image_layers(&image.id()).unwrap()[1].id;
    let lost = store.data().join(&driver).join(lost.to_string());
    unlocked(&lost.join("tree"), || std::fs::remove_dir_all(&lost).unwrap());
    twice("mend", &|| store.load_image(image.input(&["x"], true), &Silent).map(drop));
    // A load that finds a pool full which has room is tried again by itself.
    let cured = store.data() != store.root() && failed.get() == 0;
    assert!(cured || failed.get() == 1, "{} failed", failed.get());
}
