//! A full disk, for real: a clear error, everything as before, and the store works again when there is room.

mod common;

use common::*;
use std::io::Write as _;
use vellum_driver::MountOptions;
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch};

/// Takes all the room there is.
fn fill(folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    let _ = file.sync_all();
    path
}

fn survive(test: &str, kind: Kind, mib: u64) {
    let scratch = match Scratch::sized(kind, mib) {
        Ok(scratch) => scratch,
        Err(e) => return vellum_testkit::skip::record(test, &e.to_string()),
    };
    for driver in DRIVERS {
        let dir = scratch.folder(driver).unwrap();
        let small = Image::simple();
        let big = Image::big(9, 4, usize::try_from(mib).unwrap() * 100);
        let store = Store::open(&options(&dir, driver)).unwrap();
        store.load_image(small.input(&["small"], false), &Silent).unwrap();
        for keep in [false, true] {
            let error = store.load_image(big.input(&["big"], keep), &Silent).unwrap_err();
            assert_eq!(error.code(), Code::Full, "{}", told(&error));
            assert_eq!(store.images().unwrap().len(), 1);
            assert_clean(&store);
            assert_nothing_to_collect(&store);
        }
        let container = store.create_container(&small.id(), CreateOptions::default()).unwrap();
        let filler = fill(&dir);
        // With not a byte left, whatever fails says so, and what does not fail has happened.
        let mut containers = 1;
        let full = |what: &str, e: Error| assert_eq!(e.code(), Code::Full, "{what}: {}", told(&e));
        match store.create_container(&small.id(), CreateOptions::default()) {
            Ok(_) => containers += 1,
            Err(e) => full("create", e),
        }
        let commit = CommitOptions { name: Some("made".parse().unwrap()), ..CommitOptions::default() };
        match store.commit(&container, &commit) {
            Ok(_) => {}
            Err(e) => full("commit", e),
        }
        if let Err(e) = store.import(ImportSource::Tar(Box::new(&big.tars[0][..])), None, &Silent) {
            full("import", e);
        }
        if let Err(e) = store.snapshot(&container, None) {
            full("snapshot", e);
        }
        assert_eq!(store.containers().unwrap().len(), containers);
        drop(store);
        // Opening works in a full store, so that something can be removed from it; unless what was added since the
        // reserve was let go has taken that too, which is said.
        match Store::open(&options(&dir, driver)) {
            Ok(store) => assert!(!store.images().unwrap().is_empty()),
            Err(e) => full("open", e),
        }
        std::fs::remove_file(filler).unwrap();
        let store = Store::open(&options(&dir, driver)).unwrap();
        assert_clean(&store);
        store.gc(false).unwrap();
        assert_nothing_to_collect(&store);
        let path = store.mount(&container, &MountOptions::default()).unwrap();
        std::fs::write(path.join("new"), b"x").unwrap();
        let _ = store.umount(&container, true, false).unwrap();
        store.commit(&container, &commit).unwrap();
        assert_clean(&store);
        drop(store);
        Store::reset(&options(&dir, driver)).unwrap();
    }
    scratch.close().unwrap();
}

#[test]
fn loop_a_full_disk_is_survived_on_ext4() {
    survive("loop_a_full_disk_is_survived_on_ext4", Kind::Ext4, 48);
}

#[test]
fn loop_a_full_disk_is_survived_on_xfs() {
    survive("loop_a_full_disk_is_survived_on_xfs", Kind::Xfs, 300);
}

#[test]
fn loop_a_full_disk_is_survived_on_btrfs() {
    survive("loop_a_full_disk_is_survived_on_btrfs", Kind::Btrfs, 160);
}
