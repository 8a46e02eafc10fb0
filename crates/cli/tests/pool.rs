//! Pools through the command.

mod common;

use common::user::{User, refused};
use common::{Store, is_root};
use vellum_testkit::skip;

fn has(program: &str) -> bool {
    std::process::Command::new(program).arg("-V").output().is_ok_and(|out| out.status.success())
}

#[test]
fn loop_a_store_is_made_with_a_pool_and_emptied_of_it() {
    if !is_root() || !has("mkfs.xfs") || !has("xfs_repair") {
        skip!("needs root and xfsprogs");
    }
    let made = Store::with_images("overlay");
    made.words(&format!("save -o {} derived:2", made.path("image.tar").display())).ok();
    let store = Store::new("overlay");
    let told = store.words("init --pool --size 400M").ok();
    assert!(told.contains("Storage Driver: overlay") && told.contains("Pool: xfs of 419MB"), "{told}");
    // Again: it is there.
    store.words("init --pool").ok();
    store.run(["load", "-i", made.path("image.tar").to_str().unwrap()]).ok();
    let info = store.json("info --json");
    assert_eq!((&info["pool"]["fs"], &info["pool"]["mounted"]), (&"xfs".into(), &true.into()), "{info}");
    assert!(store.words("info").ok().contains("Supports reflink: true"));
    store.words("create --name c derived:2").ok();
    let root = store.words("mount c").ok();
    assert!(store.words("pool umount").fails(4).contains("vellum umount --all"));
    assert!(store.words("pool check").fails(4).contains("vellum umount --all"));
    assert!(std::path::Path::new(&root).join("etc/new").exists(), "it is still there");
    // All of it: the pool too.
    store.words("umount --all").ok();
    let status = store.json("pool status --json");
    assert_eq!(
        (&status["mounted"], &status["device"]),
        (&false.into(), &serde_json::Value::Null),
        "{status}"
    );
    assert!(store.words("pool status").ok().contains("Not mounted"));
    assert_eq!(store.words("check").ok(), "The store is sound.");
    assert!(store.words("pool check").ok().starts_with("The pool is sound"));
    assert!(store.words("pool grow 500M").ok().starts_with("Pool: xfs of 524MB"));
    store.words("pool grow 100M").fails(2);
    assert!(store.words("pool trim").ok().starts_with("Gave back: "));
    assert!(store.words("pool rm").fails(4).contains("hint: "));
    store.words("pool create").fails(5);
    store.words("rm c").ok();
    store.words("rmi derived:2").ok();
    assert!(store.words("gc").ok().contains("Of the pool's file: "));
    store.words("pool rm").ok();
    store.words("pool status").fails(3);
    assert!(!store.path("root/pool").exists());
    store.words("pool create --size 10M").fails(2);
    store.run(["load", "-i", made.path("image.tar").to_str().unwrap()]).ok();
    assert!(store.words("pool create").fails(4).contains("vellum init --pool"));
    assert!(store.words("init --pool").fails(4).contains("vellum save"));
}

#[test]
fn root_a_pool_says_what_it_needs() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    // Without the program that makes the file system.
    let store = Store::new("overlay");
    let ran = store.shell("PATH=/nowhere $V pool create --fs btrfs");
    let told = ran.fails(8);
    assert!(told.contains("mkfs.btrfs") && told.contains("btrfs-progs"), "{told}");
    assert!(!store.path("root/pool").exists(), "what was begun is taken away");
    let user = User::new(54_327, false);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    let told = user.shell("$V init --pool").fails(8);
    assert!(told.contains("only the host's root") && told.contains("reflinks"), "{told}");
}
