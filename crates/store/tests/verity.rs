//! Stores whose files the kernel verifies: in the machine of `cargo xtask vm`.

mod common;

use common::*;
use std::fs;
use std::path::{Path, PathBuf};
use vellum_driver::MountOptions;
use vellum_store::*;
use vellum_sys::verity;
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::skip;

/// Bytes of which no two blocks are the same.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..length / 4).flat_map(|_| next().to_le_bytes()).collect()
}

/// A file system with fs-verity, or why there is none. btrfs without its own checksums, which would find a flipped bit first.
fn scratch(kind: Kind) -> std::result::Result<Scratch, String> {
    let options: &[&str] = if kind == Kind::Ext4 { &["-O", "verity"] } else { &[] };
    let scratch = Scratch::made_with(kind, 1024, options).map_err(|error| error.to_string())?;
    scratch.remount(mounted(kind), |_| Ok(())).map_err(|error| error.to_string())?;
    let probe = Store::probe_drivers(&options_in(&scratch)).unwrap().remove(0).probe;
    match probe.facts.iter().find(|(name, _)| name == "fs-verity") {
        Some((_, fact)) if !fact.starts_with("no: ") => Ok(scratch),
        Some((_, fact)) => Err(format!("no fs-verity on {kind}: {}", fact.trim_start_matches("no: "))),
        None => Err(probe.reason),
    }
}

fn mounted(kind: Kind) -> &'static str {
    if kind == Kind::Btrfs { "nodatasum" } else { "" }
}

fn options_in(scratch: &Scratch) -> OpenOptions {
    options(scratch.path(), "composefs")
}

/// All objects are there: how many are sealed, and how many not.
fn sealed(store: &Store) -> (usize, usize) {
    let objects = store.data().join("composefs/objects");
    let paths: Vec<PathBuf> =
        tree(&objects).into_iter().map(|path| objects.join(path)).filter(|path| path.is_file()).collect();
    let is_sealed = |path: &&PathBuf| verity::measure(fs::File::open(path).unwrap()).unwrap().is_some();
    let count = paths.iter().filter(is_sealed).count();
    (count, paths.len() - count)
}

fn mount(store: &Store, container: &str) -> PathBuf {
    store.mount(&store.find_container(container).unwrap().id, &MountOptions::default()).unwrap()
}

fn umount(store: &Store, container: &str) {
    let _ = store.umount(&store.find_container(container).unwrap().id, false, false).unwrap();
}

fn new_container(store: &Store, image: vellum_types::ImageId, name: &str) {
    let options = CreateOptions { name: Some(name.parse().unwrap()), ..CreateOptions::default() };
    store.create_container(&image, options).unwrap();
}

/// A bit flips on the disk: the container gets an error, check the name, and the blob mends it.
fn rots_and_is_mended(scratch: &Scratch) {
    let large = noise(1, 2 << 20);
    let image =
        Image::new(vec![Tar::new().dir("usr").file("usr/large", &large).file("usr/x", &pattern(9000)).end()]);
    let store = Store::open(&options_in(scratch)).unwrap();
    store.load_image(image.input(&["x"], true), &Silent).unwrap();
    new_container(&store, image.id(), "c");
    assert_eq!(sealed(&store), (2, 0));
    // What the container wrote becomes a layer by a clone where there are clones.
    let root = mount(&store, "c");
    fs::write(root.join("usr/new"), noise(2, 1 << 20)).unwrap();
    umount(&store, "c");
    let committed = store.commit(&store.find_container("c").unwrap().id, &CommitOptions::default()).unwrap();
    assert_eq!(sealed(&store), (3, 0));
    assert_clean(&store);
    drop(store);

    let block: [u8; 4096] = large[1 << 20..][..4096].try_into().unwrap();
    assert_eq!(scratch.rot(mounted(scratch.kind()), &block).unwrap_or_else(|error| panic!("{error}")), 1);
    let store = Store::open(&options_in(scratch)).unwrap();
    let root = mount(&store, "c");
    assert_eq!(fs::read(root.join("usr/large")).map(drop).unwrap_err().raw_os_error(), Some(5), "EIO");
    assert!(fs::read(root.join("usr/x")).unwrap() == pattern(9000));
    umount(&store, "c");
    let findings = store.check(false, &Silent).unwrap();
    assert_eq!(findings[0].id, "VLM-L004", "{findings:#?}");
    assert_eq!(findings[0].path.as_deref(), Some("/usr/large"));
    assert!(findings[0].detail.contains("cannot be read"), "{findings:#?}");
    store.check(true, &Silent).unwrap();
    assert_clean(&store);
    assert_eq!(sealed(&store), (3, 0));
    assert!(fs::read(mount(&store, "c").join("usr/large")).unwrap() == large);
    umount(&store, "c");
    new_container(&store, committed, "d");
    let root = mount(&store, "d");
    assert!(
        fs::read(root.join("usr/new")).unwrap() == noise(2, 1 << 20)
            && fs::read(root.join("usr/large")).unwrap() == large
    );
    umount(&store, "d");
    drop(store);
    Store::reset(&options_in(scratch)).unwrap();
    is_made_without(scratch);
}

/// Who says no when the store is made has none of it, whoever opens it.
fn is_made_without(scratch: &Scratch) {
    let without = OpenOptions { verity: false, ..options_in(scratch) };
    drop(Store::open(&without).unwrap());
    // The driver's home is made anew, too.
    fs::remove_dir_all(Path::new(&without.root).join("composefs")).unwrap();
    let store = Store::open(&options_in(scratch)).unwrap();
    store.load_image(Image::simple().input(&["x"], false), &Silent).unwrap();
    assert_eq!(sealed(&store), (0, 2));
    drop(store);
    Store::reset(&without).unwrap();
}

#[test]
fn vm_ext4_a_rotten_file_is_an_error_and_is_mended() {
    match scratch(Kind::Ext4) {
        Ok(scratch) => rots_and_is_mended(&scratch),
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
fn vm_btrfs_a_rotten_file_is_an_error_and_is_mended() {
    match scratch(Kind::Btrfs) {
        Ok(scratch) => rots_and_is_mended(&scratch),
        Err(reason) => skip!("{reason}"),
    }
}
