//! A commit shares what the container wrote with the new layer: the data are read, and not written a second time.

mod common;

use common::*;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use vellum_driver::MountOptions;
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch};

const MIB: u64 = 1 << 20;
/// What one large file of these tests has.
const LARGE: u64 = 24 * MIB;

/// Bytes of which no two blocks are the same.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..length / 4).flat_map(|_| next().to_le_bytes()).collect()
}

/// Bytes in use, with all that was written on the disk.
fn used(path: &Path) -> u64 {
    rustix::fs::syncfs(fs::File::open(path).unwrap()).unwrap();
    let stat = rustix::fs::statvfs(path).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

/// A container of an image with a large file, written to in all the ways in which a file can be told by a diff.
fn write(root: &Path) {
    // Of its own; in a directory that was renamed; with a hole.
    fs::write(root.join("fresh"), noise(1, LARGE)).unwrap();
    fs::rename(root.join("moved"), root.join("elsewhere")).unwrap();
    fs::write(root.join("elsewhere/fresh"), noise(2, LARGE)).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(LARGE).unwrap();
    sparse.write_all_at(&noise(3, MIB), 8 * MIB).unwrap();
    // Metadata only; and a second name.
    fs::set_permissions(root.join("lower"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(root.join("fresh"), root.join("second")).unwrap();
    fs::write(root.join("small"), noise(4, 4096)).unwrap();
}

fn assert_written(root: &Path, lower: &[u8]) {
    assert!(fs::read(root.join("fresh")).unwrap() == noise(1, LARGE));
    assert_eq!(fs::metadata(root.join("second")).unwrap().nlink(), 2);
    assert!(fs::read(root.join("elsewhere/fresh")).unwrap() == noise(2, LARGE));
    assert!(!root.join("moved").exists());
    assert!(fs::read(root.join("elsewhere/old")).unwrap() == lower);
    let sparse = fs::read(root.join("sparse")).unwrap();
    assert!(sparse[8 << 20..9 << 20] == noise(3, MIB) && sparse[..8 << 20].iter().all(|byte| *byte == 0));
    assert_eq!(fs::metadata(root.join("lower")).unwrap().mode() & 0o7777, 0o600);
    assert!(fs::read(root.join("lower")).unwrap() == lower);
    assert_eq!(fs::read(root.join("small")).unwrap(), noise(4, 4096));
}

fn commits_without_writing(test: &str, kind: Kind) {
    let scratch = match Scratch::new(kind) {
        Ok(scratch) => scratch,
        Err(error) => return vellum_testkit::skip::record(test, &error.to_string()),
    };
    let options = options(scratch.path(), "composefs");
    let store = Store::open(&options).unwrap();
    let lower = noise(5, LARGE);
    let image =
        Image::new(vec![Tar::new().file("lower", &lower).dir("moved").file("moved/old", &lower).end()]);
    store.load_image(image.input(&["base"], false), &Silent).unwrap();
    let id = store.create_container(&image.id(), CreateOptions::default()).unwrap();
    let root = store.mount(&id, &MountOptions::default()).unwrap();
    write(&root);
    let before = used(scratch.path());
    let named = CommitOptions { name: Some("made".parse().unwrap()), ..CommitOptions::default() };
    let made = store.commit(&id, &named).unwrap();
    let grown = used(scratch.path()).saturating_sub(before);
    assert!(grown < 6 * MIB, "the commit of {} MiB took {} KiB", 2 * LARGE / MIB, grown >> 10);
    let top = store.image_layers(&made).unwrap().pop().unwrap();
    let mut tar = Vec::new();
    let diff_id = store.layer_tar(top.id, &mut tar).unwrap();
    assert_eq!(*diff_id.digest(), vellum_types::Digest::sha256(&tar));
    // What the container does afterwards is its own.
    fs::File::options().write(true).open(root.join("fresh")).unwrap().write_all_at(b"later", 0).unwrap();
    let second = store.create_container(&made, CreateOptions::default()).unwrap();
    assert_written(&store.mount(&second, &MountOptions::default()).unwrap(), &lower);
    assert_clean(&store);
    drop(store);
    Store::reset(&options).unwrap();
    scratch.close().unwrap();
}

#[test]
fn loop_a_commit_writes_no_data_on_xfs() {
    commits_without_writing("loop_a_commit_writes_no_data_on_xfs", Kind::Xfs);
}

#[test]
fn loop_a_commit_writes_no_data_on_btrfs() {
    commits_without_writing("loop_a_commit_writes_no_data_on_btrfs", Kind::Btrfs);
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn loop_a_commit_of_a_file_that_is_being_written_is_of_one_moment() {
    let test = "loop_a_commit_of_a_file_that_is_being_written_is_of_one_moment";
    let scratch = match Scratch::new(Kind::Xfs) {
        Ok(scratch) => scratch,
        Err(error) => return vellum_testkit::skip::record(test, &error.to_string()),
    };
    let options = options(scratch.path(), "composefs");
    let store = Store::open(&options).unwrap();
    store.load_image(Image::simple().input(&["base"], false), &Silent).unwrap();
    let id = store.create_container(&Image::simple().id(), CreateOptions::default()).unwrap();
    let root = store.mount(&id, &MountOptions::default()).unwrap();
    let file = fs::File::create(root.join("busy")).unwrap();
    file.write_all_at(&noise(1, 8 * MIB), 0).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in (0u64..).take_while(|_| !ended.load(Ordering::Relaxed)) {
                file.write_all_at(&round.to_le_bytes(), round * 4096 % (8 * MIB)).unwrap();
                file.set_len(8 * MIB - round % 3 * 100_000).unwrap();
            }
        });
        // Ends the other thread also when something below fails.
        let _end = End(&ended);
        for _ in 0..5 {
            let made = store.commit(&id, &CommitOptions::default()).unwrap();
            let top = store.image_layers(&made).unwrap().pop().unwrap();
            store.layer_tar(top.id, &mut std::io::sink()).unwrap();
        }
    });
    // Every object has the content that its name says, and every file that of its manifest.
    assert_clean(&store);
    drop((file, store));
    Store::reset(&options).unwrap();
    scratch.close().unwrap();
}
