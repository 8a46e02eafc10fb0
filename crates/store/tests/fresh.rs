//! Containers made with one sync: what a power cut takes of their files is made again, and what was written to them is kept.

mod common;

use common::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use vellum_driver::{Ability, MountOptions};
use vellum_store::*;
use vellum_types::ContainerId;

/// Takes something of a layer's folder, or of the one beside it.
type Loss = fn(&Path, &Path);

/// What a power cut may take.
const LOSSES: &[(&str, Loss)] = &[
    ("all", |own, beside| {
        fs::remove_dir_all(own).unwrap();
        fs::remove_dir_all(beside).unwrap();
    }),
    ("record", |own, _| fs::remove_file(own.join("lower")).unwrap()),
    ("record's bytes", |own, _| fs::write(own.join("lower"), b"").unwrap()),
    ("half of the record", |own, _| fs::write(own.join("lower"), b"acti").unwrap()),
    ("work", |own, _| fs::remove_dir_all(own.join("work")).unwrap()),
    ("diff", |own, _| fs::remove_dir_all(own.join("diff")).unwrap()),
    ("layer.json", |_, beside| fs::remove_file(beside.join("layer.json")).unwrap()),
    ("layer.json's bytes", |_, beside| fs::write(beside.join("layer.json"), b"").unwrap()),
];

fn place(test: &str) -> Option<(Place, Store, Image)> {
    let place = Place::new(test, "overlay")?;
    let store = place.open();
    let root = Tar::new().dir(".").dir("etc").file("etc/a", b"below").end();
    let image = Image::new(vec![root]);
    store.load_image(image.input(&["img"], false), &Silent).unwrap();
    Some((place, store, image))
}

fn folders(place: &Place, store: &Store, id: &ContainerId) -> (PathBuf, PathBuf) {
    let layer = store.find_container(&id.to_string()).unwrap().layer.to_string();
    let beside = place.data().join("layers/overlay").join(&layer);
    (place.data().join("overlay").join(layer), beside)
}

fn mounted(store: &Store, id: &ContainerId, look: impl FnOnce(&Path)) {
    let path = store.mount(id, &MountOptions::default()).unwrap();
    look(&path);
    assert!(store.umount(id, true, false).unwrap().unmounted);
}

#[test]
fn root_what_a_power_cut_takes_of_a_new_container_is_made_again() {
    let Some((place, store, image)) = place("root_what_a_power_cut_takes_of_a_new_container_is_made_again")
    else {
        return;
    };
    for (what, lose) in LOSSES {
        let id = store.create_container(&image.id(), CreateOptions::default()).unwrap();
        let (own, beside) = folders(&place, &store, &id);
        lose(&own, &beside);
        mounted(&store, &id, |path| {
            assert_eq!(fs::read(path.join("etc/a")).unwrap(), b"below", "{what}");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o755, "{what}");
            fs::write(path.join("etc/new"), b"written").unwrap();
        });
        assert_clean(&store);
    }
    assert_nothing_to_collect(&store);
}

#[test]
fn root_what_a_new_container_wrote_and_synced_is_kept() {
    let Some((place, store, image)) = place("root_what_a_new_container_wrote_and_synced_is_kept") else {
        return;
    };
    for (what, lose) in LOSSES.iter().filter(|(what, _)| !matches!(*what, "all" | "diff")) {
        let id = store.create_container(&image.id(), CreateOptions::default()).unwrap();
        mounted(&store, &id, |path| {
            fs::write(path.join("etc/new"), b"written").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o711)).unwrap();
        });
        let (own, beside) = folders(&place, &store, &id);
        lose(&own, &beside);
        mounted(&store, &id, |path| {
            assert_eq!(fs::read(path.join("etc/new")).unwrap(), b"written", "{what}");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o711, "{what}");
        });
        assert_clean(&store);
    }
}

#[test]
fn root_a_container_that_is_known_to_be_on_the_disk_is_not_made_again() {
    let Some((place, store, image)) =
        place("root_a_container_that_is_known_to_be_on_the_disk_is_not_made_again")
    else {
        return;
    };
    let id = store.create_container(&image.id(), CreateOptions::default()).unwrap();
    assert_clean(&store);
    let (own, _) = folders(&place, &store, &id);
    fs::remove_dir_all(own).unwrap();
    assert!(store.mount(&id, &MountOptions::default()).is_err());
    let findings = store.check(false, &Silent).unwrap();
    assert_eq!(findings.len(), 1, "{findings:#?}");
}

#[test]
fn root_what_a_power_cut_takes_of_a_new_snapshot_is_made_again() {
    let Some((place, store, _)) = place("root_what_a_power_cut_takes_of_a_new_snapshot_is_made_again") else {
        return;
    };
    let snapshots = store.snapshots("test");
    snapshots.prepare("base", None, &BTreeMap::new()).unwrap();
    snapshots.commit("below", "base", None, &BTreeMap::new()).unwrap();
    for view in [false, true] {
        let key = format!("key-{view}");
        let row = if view {
            snapshots.view(&key, Some("below"), &BTreeMap::new()).unwrap()
        } else {
            snapshots.prepare(&key, Some("below"), &BTreeMap::new()).unwrap()
        };
        let layer = row.layer.to_string();
        fs::remove_dir_all(place.data().join("overlay").join(&layer)).unwrap();
        fs::remove_dir_all(place.data().join("layers/overlay").join(&layer)).unwrap();
        // With the power goes the process that knew it to be whole.
        let store = place.open();
        let snapshots = store.snapshots("test");
        assert!(snapshots.mounts(&key, &MountOptions::default()).is_ok());
        assert_clean(&store);
    }
}

#[test]
fn root_a_layer_that_takes_long_to_make_has_an_intent() {
    let test = "root_a_layer_that_takes_long_to_make_has_an_intent";
    let Some(place) = Place::new(test, "vfs") else { return };
    let store = place.open();
    assert!(!store.info().unwrap().capabilities.has(Ability::InstantCreate));
    let image = Image::simple();
    store.load_image(image.input(&["img"], false), &Silent).unwrap();
    let id = store.create_container(&image.id(), CreateOptions::default()).unwrap();
    let layer = store.find_container(&id.to_string()).unwrap().layer.to_string();
    fs::remove_dir_all(place.data().join("vfs").join(layer)).unwrap();
    assert_eq!(store.mount(&id, &MountOptions::default()).unwrap_err().code(), Code::NotFound);
}

#[test]
fn root_hundreds_of_commands_leave_a_short_log() {
    let Some((place, store, image)) = place("root_hundreds_of_commands_leave_a_short_log") else { return };
    drop(store);
    for _ in 0..300 {
        // One process each, as far as the catalog can tell: it is opened alone, and written once.
        place.open().create_container(&image.id(), CreateOptions::default()).unwrap();
    }
    let log = place.root().join("catalog.db-wal").metadata().unwrap().len();
    assert!(log <= 1 << 20, "{log} bytes");
    let store = place.open();
    assert_eq!(store.containers().unwrap().len(), 300);
    assert_clean(&store);
}

/// `ask` is asked over and over by three threads while `commit` works, and never hears of damage.
fn asked_while(commit: impl FnOnce(), ask: impl Fn() -> Result<()> + Sync) {
    let done = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(ordering) {
                    // The key of a snapshot that was committed is gone.
                    if let Err(e) = ask() {
                        assert_eq!(e.code(), Code::NotFound, "{}", told(&e));
                    }
                }
            });
        }
        commit();
        done.store(true, ordering);
    });
}

#[test]
fn root_what_is_being_committed_is_not_taken_for_damaged() {
    let Some((_place, store, _)) = place("root_what_is_being_committed_is_not_taken_for_damaged") else {
        return;
    };
    let (snapshots, graph) = (store.snapshots("test"), store.graph("docker"));
    for round in 0..12 {
        snapshots.prepare("key", None, &BTreeMap::new()).unwrap();
        let commit = || drop(snapshots.commit(&format!("{round}"), "key", None, &BTreeMap::new()).unwrap());
        asked_while(commit, || snapshots.usage("key").map(drop));
        let id = format!("layer{round}");
        graph.create(&id, None, &[]).unwrap();
        // Whatever another layer is made on is sealed first.
        let seal = || graph.create(&format!("child{round}"), Some(&id), &[]).unwrap();
        asked_while(seal, || graph.metadata(&id).map(drop));
    }
    assert_clean(&store);
}
