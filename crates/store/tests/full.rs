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

/// Leaves so much room, and takes the rest.
fn leave(folder: &std::path::Path, mib: u64) -> std::path::PathBuf {
    let path = folder.join("most");
    let free = vellum_sys::fsinfo::FileSystem::at(folder).unwrap().free_bytes;
    let file = std::fs::File::create(&path).unwrap();
    let take = free.saturating_sub(mib << 20).max(1);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
    sync(folder);
    path
}

/// The drivers that work on the file system.
fn drivers_on(kind: Kind) -> impl Iterator<Item = &'static str> {
    DRIVERS.iter().copied().filter(move |driver| *driver != "btrfs" || kind == Kind::Btrfs)
}

fn survive(test: &str, kind: Kind, mib: u64) {
    let scratch = match Scratch::sized(kind, mib) {
        Ok(scratch) => scratch,
        Err(e) => return vellum_testkit::skip::record(test, &e.to_string()),
    };
    for driver in drivers_on(kind) {
        let dir = scratch.folder(driver).unwrap();
        let small = Image::simple();
        let big = Image::bulky(9, 4, 9);
        let store = Store::open(&options(&dir, driver)).unwrap();
        store.load_image(small.input(&["small"], false), &Silent).unwrap();
        let most = leave(&dir, 24);
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
        // Opening works in a full store, so that something can be removed from it.
        assert!(!Store::open(&options(&dir, driver)).unwrap().images().unwrap().is_empty());
        std::fs::remove_file(filler).unwrap();
        std::fs::remove_file(most).unwrap();
        sync(&dir);
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

/// Takes all the room there is, the store's reserve too, and all inodes and metadata: by large files, then by small ones.
fn exhaust(folder: &std::path::Path, root: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut fillers = Vec::new();
    let small = folder.join("small");
    std::fs::create_dir_all(&small).unwrap();
    fillers.push(fill(folder));
    let _ = std::fs::remove_file(root.join("reserve"));
    sync(folder);
    for round in 0..3 {
        let more = folder.join(format!("more{round}"));
        if let Ok(mut file) = std::fs::File::create(&more) {
            for size in [1 << 20, 4096, 1] {
                while file.write_all(&vec![1; size]).is_ok() {}
            }
            let _ = file.sync_all();
        }
        fillers.push(more);
        // Of a size that btrfs keeps within its trees.
        for number in 0.. {
            if std::fs::write(small.join(format!("{round}-{number}")), [1; 1500]).is_err() {
                break;
            }
        }
        sync(folder);
    }
    fillers.push(small);
    fillers
}

fn sync(folder: &std::path::Path) {
    let _ = rustix::fs::syncfs(std::fs::File::open(folder).unwrap());
}

/// With nothing left at all: the store opens, tells what it has, and can be emptied.
fn emptied(test: &str, kind: Kind, mib: u64) {
    let scratch = match Scratch::sized(kind, mib) {
        Ok(scratch) => scratch,
        Err(e) => return vellum_testkit::skip::record(test, &e.to_string()),
    };
    for driver in drivers_on(kind) {
        let dir = scratch.folder(driver).unwrap();
        let store = Store::open(&options(&dir, driver)).unwrap();
        let (image, other) = (Image::simple(), Image::big(4, 2, 30));
        store.load_image(image.input(&["small"], false), &Silent).unwrap();
        store.load_image(other.input(&["other"], false), &Silent).unwrap();
        let create = |name: &str| {
            let options = CreateOptions { name: Some(name.parse().unwrap()), ..CreateOptions::default() };
            store.create_container(&image.id(), options).unwrap()
        };
        let first = create("first");
        store.snapshot(&first, None).unwrap();
        create("second");
        store.tag(&image.id(), &"tagged".parse().unwrap()).unwrap();
        drop(store);
        // As after a boot: what the driver found out before does not count any more.
        let probed = dir.join("root/overlay/.features");
        if let Ok(text) = std::fs::read_to_string(&probed) {
            std::fs::write(&probed, format!("another boot\n{}", text.split_once('\n').unwrap().1)).unwrap();
        }
        let fillers = exhaust(&dir, &dir.join("root"));
        // What is asked of a store with nothing left, by processes that begin anew each time.
        let open =
            || Store::open(&options(&dir, driver)).unwrap_or_else(|e| panic!("{driver}: {}", told(&e)));
        assert_eq!(open().images().unwrap().len(), 2);
        assert_eq!(open().containers().unwrap().len(), 2);
        open().usage().unwrap();
        let _ = open().gc(true).unwrap();
        let must = |what: &str, result: Result<()>| {
            result.unwrap_or_else(|e| panic!("{driver} {what}: {}", told(&e)))
        };
        must("unsave", open().remove_save_point(&first, &"s1".parse().unwrap()));
        must("rm", open().remove_container(&first, false));
        must("rmi other", open().remove_image("other", false).map(drop));
        must("untag", open().remove_image("tagged", false).map(drop));
        must("gc", open().gc(false).map(drop));
        let rows = open().containers().unwrap();
        must("rm second", open().remove_container(&rows[0].id, false));
        must("rmi", open().remove_image("small", false).map(drop));
        must("gc again", open().gc(false).map(drop));
        assert!(open().images().unwrap().is_empty());
        for filler in fillers {
            let _ = std::fs::remove_file(&filler);
            let _ = std::fs::remove_dir_all(&filler);
        }
        sync(&dir);
        let store = open();
        assert_clean(&store);
        assert_nothing_to_collect(&store);
        store.load_image(image.input(&["again"], false), &Silent).unwrap();
        assert_clean(&store);
        drop(store);
        Store::reset(&options(&dir, driver)).unwrap();
    }
    scratch.close().unwrap();
}

#[test]
fn loop_a_store_with_nothing_left_opens_and_can_be_emptied_on_ext4() {
    emptied("loop_a_store_with_nothing_left_opens_and_can_be_emptied_on_ext4", Kind::Ext4, 48);
}

#[test]
fn loop_a_store_with_nothing_left_opens_and_can_be_emptied_on_xfs() {
    emptied("loop_a_store_with_nothing_left_opens_and_can_be_emptied_on_xfs", Kind::Xfs, 300);
}

#[test]
fn loop_a_store_with_nothing_left_opens_and_can_be_emptied_on_btrfs() {
    emptied("loop_a_store_with_nothing_left_opens_and_can_be_emptied_on_btrfs", Kind::Btrfs, 160);
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
