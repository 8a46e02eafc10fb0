//! A process is killed at every step of making, growing, trimming and removing a pool: the store is then sound, and no mount and no
//! loop device is left that nobody knows of.

mod common;

use common::pools::{Host, spec};
use common::*;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use vellum_store::*;

const CHILD: &str = "VELLUM_TEST_CHILD";

/// Everything that is done with pools, noting what was done.
#[test]
fn child_with_a_pool() {
    let Some(dir) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else { return };
    let options = options(&dir, "overlay");
    let note = |what: &str| std::fs::write(dir.join("done"), what).unwrap();
    drop(Store::open(&options).unwrap());
    Store::pool_create(&options, &spec(PoolFs::Xfs, 300)).unwrap();
    note("created");
    let store = Store::open(&options).unwrap();
    store.load_image(Image::simple().input(&["kept"], false), &Silent).unwrap();
    note("loaded");
    store.pool_grow(Some(400 << 20)).unwrap();
    note("grown");
    store.gc(false).unwrap();
    store.remove_image("kept", false).unwrap();
    note("empty");
    drop(store);
    Store::pool_remove(&options).unwrap();
    note("removed");
}

#[test]
fn loop_a_load_that_finds_a_pool_full_is_tried_again_when_it_has_room() {
    let test = "loop_a_load_that_finds_a_pool_full_is_tried_again_when_it_has_room";
    let Some(host) = Host::new(test, 900) else { return };
    assert!(!killed(host.path(), "store.load.unpacked=ENOSPC"));
    assert_eq!(std::fs::read_to_string(host.path().join("done")).unwrap(), "removed");
    Store::reset(&host.options("overlay")).unwrap();
    host.assert_off();
}

/// Whether the child was killed; it may also have come to its end.
fn killed(dir: &Path, fault: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_a_pool", "--nocapture"])
        .env(CHILD, dir)
        .env(vellum_sys::fault::VARIABLE, fault)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    match (status.signal(), status.code()) {
        (Some(9), _) => true,
        (_, Some(0)) => false,
        _ => panic!("the child ended with {status} at {fault}"),
    }
}

fn look_after(host: &Host, fault: &str) {
    let done = std::fs::read_to_string(host.path().join("done")).unwrap_or_default();
    let options = host.options("overlay");
    let store =
        Store::open(&options).unwrap_or_else(|e| panic!("killed at {fault} after '{done}': {}", told(&e)));
    let pool = store.info().unwrap().pool;
    match &*done {
        "loaded" | "grown" => {
            assert!(store.find_image("kept").is_ok(), "killed at {fault}");
            assert!(pool.is_some(), "killed at {fault}");
        }
        "created" => assert!(pool.is_some(), "killed at {fault}"),
        _ => {}
    }
    let size = host.image().metadata().map_or(0, |meta| meta.len());
    assert!(done != "grown" || size == 400 << 20, "killed at {fault}");
    assert_eq!(host.path().join("root/pool").exists(), pool.is_some(), "killed at {fault}");
    assert_eq!((host.mounts().len(), host.devices()), (pool.iter().count(), pool.iter().count()), "{fault}");
    store.load_image(Image::big(3, 2, 20).input(&["more"], false), &Silent).unwrap();
    assert_clean(&store);
    if pool.is_some() {
        // It grows again, over what was cut short.
        store.pool_grow(Some(500 << 20)).unwrap();
        assert!(vellum_sys::fsinfo::FileSystem::at(store.data()).unwrap().total_bytes > 400 << 20);
    }
    drop(store);
    Store::reset(&options).unwrap();
    host.assert_off();
    assert!(!host.path().join("root").exists());
}

#[test]
fn loop_a_process_killed_at_any_step_of_a_pool_leaves_a_sound_store() {
    let test = "loop_a_process_killed_at_any_step_of_a_pool_leaves_a_sound_store";
    let Some(host) = Host::new(test, 900) else { return };
    // The same are passed when a pool is made and when it is removed.
    let again = ["store.pool.renamed:2", "store.pool.noted:2"];
    let faults = FAULT_POINTS.iter().filter(|fault| fault.starts_with("store.pool."));
    for fault in faults.chain(&again) {
        let _ = std::fs::remove_file(host.path().join("done"));
        if !killed(host.path(), fault) {
            let done = std::fs::read_to_string(host.path().join("done")).unwrap();
            panic!("nothing passes {fault}; done: {done}");
        }
        look_after(&host, fault);
    }
}
