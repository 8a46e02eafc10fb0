//! What is shared and what is done behind requests: syncs of the catalog's log, and the keeper's removals.

mod common;

use common::*;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use vellum_driver::MountOptions;
use vellum_store::*;

const CHILD: &str = "VELLUM_TEST_BEHIND";

/// Runs a test of this file as a process of its own, on a store, with faults.
fn run(child: &str, place: &Place, fault: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--nocapture"])
        .env(CHILD, place.dir.as_ref().unwrap().path())
        .env(vellum_sys::fault::VARIABLE, fault)
        .stdout(Stdio::null())
        .status()
        .unwrap()
}

fn store_of_child() -> Option<Store> {
    let dir = std::env::var_os(CHILD)?;
    Some(Store::open(&options(Path::new(&dir), "overlay")).unwrap())
}

fn names(place: &Place, of: &str) -> Vec<String> {
    let entries = std::fs::read_dir(place.data().join(of)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The layers that a driver has folders of.
fn folders(place: &Place, driver: &str) -> usize {
    let own = |name: &String| name != "L" && name.parse::<vellum_types::LayerId>().is_ok();
    names(place, driver).iter().filter(|name| own(name)).count()
}

/// Both syncs of the log fail, and both tries to write it again.
#[test]
fn child_whose_log_cannot_be_synced() {
    let Some(store) = store_of_child() else { return };
    let snapshots = store.snapshots("test");
    let none = Labels::new();
    // What is told as failed is not told as done; it is there for who looks.
    let error = snapshots.prepare("a", None, &none).unwrap_err();
    assert_eq!(error.code(), Code::System, "{}", told(&error));
    snapshots.stat("a").unwrap();
    // Nothing is changed before the log is on the disk as it is.
    let error = snapshots.prepare("b", None, &none).unwrap_err();
    assert!(told(&error).contains("once more"), "{}", told(&error));
    assert_eq!(snapshots.stat("b").unwrap_err().code(), Code::NotFound);
    // Now it is.
    snapshots.prepare("b", None, &none).unwrap();
    snapshots.prepare("c", None, &none).unwrap();
    snapshots.remove("a").unwrap();
}

#[test]
fn root_a_log_that_cannot_be_synced_is_told_and_written_again() {
    let test = "root_a_log_that_cannot_be_synced_is_told_and_written_again";
    let Some(place) = Place::new(test, "overlay") else { return };
    drop(place.open());
    // The first try to write it again is of the one that takes back what was made for `a`. (A rule that fails hides the point from the next.)
    let fault = "store.log.sync=EIO,store.log.again=EIO,store.log.again=EIO";
    let status = run("child_whose_log_cannot_be_synced", &place, fault);
    assert!(status.success(), "{status}");
    let store = place.open();
    let keys: Vec<String> = store.snapshots("test").walk().unwrap().into_iter().map(|row| row.key).collect();
    assert_eq!(keys, ["b", "c"]);
    assert_clean(&store);
    assert_nothing_to_collect(&store);
}

#[test]
fn root_many_clients_at_once_share_syncs_and_lose_nothing() {
    let test = "root_many_clients_at_once_share_syncs_and_lose_nothing";
    for driver in DRIVERS {
        let Some(place) = Place::new(test, driver) else { continue };
        let store = Arc::new(place.open());
        let keeper = Keeper::start(Arc::clone(&store)).unwrap();
        assert_eq!(Keeper::start(Arc::clone(&store)).unwrap_err().code(), Code::Exists);
        let none = Labels::new();
        store.snapshots("test").prepare("base", None, &none).unwrap();
        store.snapshots("test").commit("below", "base", None, &none).unwrap();
        std::thread::scope(|scope| {
            for client in 0..8 {
                let store = &store;
                let none = &none;
                scope.spawn(move || {
                    let snapshots = store.snapshots("test");
                    for round in 0..12 {
                        // The key is free again as soon as the removal was answered.
                        let key = format!("box-{client}");
                        let row = snapshots.prepare(&key, Some("below"), none).unwrap();
                        assert_eq!(snapshots.stat(&key).unwrap(), row);
                        assert_eq!(snapshots.hand_out(&row, None).unwrap().len(), 1);
                        if round % 4 == 3 {
                            snapshots.commit(&format!("{key}-{round}"), &key, None, none).unwrap();
                        } else {
                            snapshots.remove(&key).unwrap();
                        }
                    }
                });
            }
        });
        let snapshots = store.snapshots("test");
        assert_eq!(snapshots.walk().unwrap().len(), 1 + 8 * 3);
        snapshots.cleanup().unwrap();
        assert_eq!(folders(&place, driver), 1 + 8 * 3, "nothing waits after a clean-up");
        assert_eq!(names(&place, &format!("trash/{driver}")), [""; 0]);
        assert_clean(&store);
        for row in snapshots.walk().unwrap().iter().rev().filter(|row| row.key != "below") {
            snapshots.remove(&row.key).unwrap();
        }
        snapshots.remove("below").unwrap();
        // It ends when all is done.
        drop(keeper);
        assert_eq!(folders(&place, driver), 0);
        assert_eq!(store.info().unwrap().layers, 0);
        assert_nothing_to_collect(&store);
        assert_clean(&store);
    }
}

/// Removes through the keeper, which is killed while it is at it.
#[test]
fn child_whose_keeper_is_killed() {
    let Some(store) = store_of_child() else { return };
    let store = Arc::new(store);
    let keeper = Keeper::start(Arc::clone(&store)).unwrap();
    let snapshots = store.snapshots("test");
    for key in ["a", "b", "c"] {
        snapshots.prepare(key, None, &Labels::new()).unwrap();
    }
    snapshots.remove("a").unwrap();
    snapshots.remove("b").unwrap();
    drop(keeper);
}

#[test]
fn root_what_a_killed_keeper_left_is_done_by_the_next_open() {
    let test = "root_what_a_killed_keeper_left_is_done_by_the_next_open";
    for fault in ["store.remove.folder", "store.remove.folder:2", "store.remove.forget", "store.trash.purged"]
    {
        let Some(place) = Place::new(test, "overlay") else { return };
        drop(place.open());
        let status = run("child_whose_keeper_is_killed", &place, fault);
        assert_eq!(status.signal(), Some(9), "{fault}: {status}");
        let store = place.open();
        let keys: Vec<_> = store.snapshots("test").walk().unwrap().into_iter().map(|row| row.key).collect();
        assert_eq!(keys, ["c"], "{fault}");
        store.snapshots("test").cleanup().unwrap();
        assert_eq!(folders(&place, "overlay"), 1, "{fault}");
        // Its lock, when no row told of it any more.
        let left = store.gc(false).unwrap().items;
        assert!(left.iter().all(|item| item.kind == "lock"), "{fault}: {left:#?}");
        assert_clean(&store);
    }
}

/// The record beside a layer, if it is there.
fn record(place: &Place, layer: vellum_types::LayerId) -> Option<String> {
    std::fs::read_to_string(place.data().join(format!("layers/overlay/{layer}/layer.json"))).ok()
}

#[test]
fn root_the_record_of_a_snapshot_is_written_behind_its_request() {
    let test = "root_the_record_of_a_snapshot_is_written_behind_its_request";
    let Some(place) = Place::new(test, "overlay") else { return };
    let store = Arc::new(place.open());
    let keeper = Keeper::start(Arc::clone(&store)).unwrap();
    let snapshots = store.snapshots("test");
    let none = Labels::new();
    let kept = snapshots.prepare("kept", None, &none).unwrap();
    let changed = snapshots.prepare("changed", None, &none).unwrap();
    let label = Labels::from([("colour".to_owned(), "green".to_owned())]);
    snapshots.update("changed", &label).unwrap();
    let committed = snapshots.prepare("committing", None, &none).unwrap();
    snapshots.commit("committed", "committing", None, &none).unwrap();
    let gone = snapshots.prepare("gone", None, &none).unwrap();
    snapshots.remove("gone").unwrap();
    snapshots.cleanup().unwrap();
    assert!(record(&place, kept.layer).unwrap().contains("\"kept\""));
    // What a later request wrote is not written over.
    assert!(record(&place, changed.layer).unwrap().contains("green"));
    assert!(record(&place, committed.layer).unwrap().contains("\"committed\""));
    assert!(!names(&place, "layers/overlay").contains(&gone.layer.to_string()));
    drop(keeper);
    // There is nobody to leave it to now.
    let late = snapshots.prepare("late", None, &none).unwrap();
    assert!(record(&place, late.layer).is_some());
    assert_clean(&store);
    assert_nothing_to_collect(&store);
}

#[test]
fn child_that_dies_before_its_keeper_wrote_a_record() {
    let Some(store) = store_of_child() else { return };
    let store = Arc::new(store);
    let _keeper = Keeper::start(Arc::clone(&store)).unwrap();
    store.snapshots("test").prepare("orphan", None, &Labels::new()).unwrap();
    store.snapshots("test").cleanup().unwrap();
}

#[test]
fn root_a_record_that_a_killed_keeper_did_not_write_is_made_good_for() {
    let test = "root_a_record_that_a_killed_keeper_did_not_write_is_made_good_for";
    let Some(place) = Place::new(test, "overlay") else { return };
    drop(place.open());
    let status = run("child_that_dies_before_its_keeper_wrote_a_record", &place, "store.keeper.file");
    assert_eq!(status.signal(), Some(9));
    let store = place.open();
    let snapshots = store.snapshots("test");
    let row = snapshots.stat("orphan").unwrap();
    assert_eq!(record(&place, row.layer), None);
    snapshots.mounts("orphan", &MountOptions::default()).unwrap();
    assert!(record(&place, row.layer).unwrap().contains("\"orphan\""));
    assert_clean(&store);
    snapshots.remove("orphan").unwrap();
    // The keeper's lock, of which no row told.
    let left = store.gc(false).unwrap().items;
    assert!(left.iter().all(|item| item.kind == "lock"), "{left:#?}");
}

#[test]
fn root_a_collection_ends_when_what_others_were_deleting_is_gone() {
    let test = "root_a_collection_ends_when_what_others_were_deleting_is_gone";
    for driver in DRIVERS {
        let Some(place) = Place::new(test, driver) else { continue };
        let store = place.open();
        let snapshots = store.snapshots("test");
        // As a worker does while it deletes.
        let working = vellum_sys::lock::FileLock::exclusive(&place.root().join("locks/trash")).unwrap();
        snapshots.prepare("a", None, &Labels::new()).unwrap();
        snapshots.remove("a").unwrap();
        assert_eq!(names(&place, &format!("trash/{driver}")).len(), 1, "it waits for the worker");
        std::thread::scope(|scope| {
            let collection = scope.spawn(|| store.gc(false).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!collection.is_finished());
            drop(working);
            let collected = collection.join().unwrap().items;
            assert!(collected.iter().any(|item| item.kind == "trash"), "{collected:#?}");
        });
        assert_eq!(names(&place, &format!("trash/{driver}")), [""; 0]);
        assert_nothing_to_collect(&store);
    }
}
