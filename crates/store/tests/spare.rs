//! What drivers make ahead for mounts goes when only other layers lie on it, is counted, and is made again.

mod common;

use common::*;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vellum_driver::MountOptions;
use vellum_store::*;
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

/// The names of the images below, base first.
const CHAIN: [&str; 4] = ["a", "b", "c", "d"];

/// Unpacks a chain of layers as containerd does: each parent is mounted once, through the store's own mounter here.
fn unpack(store: &Store) -> Vec<LayerId> {
    let snapshots = store.snapshots("containerd/test");
    let mut parent = None;
    for name in CHAIN {
        let key = format!("unpack-{name}");
        let row = snapshots.prepare(&key, parent, &Labels::new()).unwrap();
        let mounts = snapshots.hand_out(&row, None).unwrap();
        assert!(!mounts.is_empty());
        snapshots.commit(name, &key, parent, &Labels::new()).unwrap();
        parent = Some(name);
    }
    CHAIN.iter().map(|name| snapshots.stat(name).unwrap().layer).collect()
}

fn image_of(store: &Store, layer: LayerId) -> PathBuf {
    store.data().join("composefs").join(layer.to_string()).join("image")
}

fn images(store: &Store, layers: &[LayerId]) -> Vec<bool> {
    layers.iter().map(|layer| image_of(store, *layer).exists()).collect()
}

/// What the catalog says that a snapshot takes, and what it takes.
fn assert_counted(store: &Store) {
    for name in CHAIN {
        let counted = store.snapshots("containerd/test").usage(name).unwrap();
        let folder = image_of(store, store.snapshots("containerd/test").stat(name).unwrap().layer);
        let files = fs::read_dir(folder.parent().unwrap()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name == "tree" || name == "image"
        });
        assert_eq!(counted.inodes, files.count() as u64, "{name}");
    }
}

#[test]
fn root_images_that_only_layers_lie_on_go_and_come_again() {
    let test = "root_images_that_only_layers_lie_on_go_and_come_again";
    let Some(place) = Place::new(test, "composefs") else { return };
    let store = place.open();
    let layers = unpack(&store);
    assert_eq!(images(&store, &layers), [true, true, true, false], "the parents were mounted");
    let told = store.gc(true).unwrap();
    assert_eq!(told.items.iter().filter(|item| item.kind == "cache").count(), 3, "{told:#?}");
    assert_eq!(images(&store, &layers), [true, true, true, false], "a dry run takes nothing");
    // What a container or a look lies on is kept.
    let snapshots = store.snapshots("containerd/test");
    let row = snapshots.prepare("container", Some("b"), &Labels::new()).unwrap();
    let mounts = snapshots.hand_out(&row, None).unwrap();
    snapshots.view("look", Some("c"), &Labels::new()).unwrap();
    let report = store.gc(false).unwrap();
    let taken: Vec<_> = report.items.iter().filter(|item| item.kind == "cache").collect();
    assert!(taken.len() == 1 && taken[0].bytes > 0 && report.bytes >= taken[0].bytes, "{report:#?}");
    assert_eq!(images(&store, &layers), [false, true, true, false]);
    assert_counted(&store);
    assert_eq!(snapshots.hand_out(&row, None).unwrap(), mounts);
    // Containerd's cleanup does the same.
    for key in ["container", "look"] {
        snapshots.remove(key).unwrap();
    }
    snapshots.cleanup().unwrap();
    assert_eq!(images(&store, &layers), [false; 4]);
    assert_counted(&store);
    // A container on any of them has it made again.
    for name in CHAIN {
        let key = format!("again-{name}");
        let row = snapshots.prepare(&key, Some(name), &Labels::new()).unwrap();
        snapshots.hand_out(&row, None).unwrap();
    }
    assert_eq!(images(&store, &layers), [true; 4]);
    assert_counted(&store);
    assert_clean(&store);
    for name in CHAIN {
        snapshots.remove(&format!("again-{name}")).unwrap();
    }
    for name in CHAIN.iter().rev() {
        snapshots.remove(name).unwrap();
    }
    store.gc(false).unwrap();
    assert_nothing_to_collect(&store);
}

#[test]
fn root_what_an_image_is_made_of_keeps_what_its_containers_mount() {
    let test = "root_what_an_image_is_made_of_keeps_what_its_containers_mount";
    let Some(place) = Place::new(test, "composefs") else { return };
    let store = place.open();
    let base = Image::simple();
    store.load_image(base.input(&["base"], false), &Silent).unwrap();
    let id = store.create_container(&base.id(), CreateOptions::default()).unwrap();
    store.mount(&id, &MountOptions::default()).unwrap();
    let _ = store.umount(&id, true, false).unwrap();
    store
        .commit(&id, &CommitOptions { name: Some("made".parse().unwrap()), ..CommitOptions::default() })
        .unwrap();
    store.remove_container(&id, false).unwrap();
    let top = store.image_layers(&base.id()).unwrap().pop().unwrap().id;
    store.gc(false).unwrap();
    assert!(image_of(&store, top).exists(), "its next container is there at once");
    store.remove_image("base", true).unwrap();
    store.gc(false).unwrap();
    assert!(!image_of(&store, top).exists(), "only a layer lies on it now");
    assert_nothing_to_collect(&store);
    assert_clean(&store);
}

#[test]
fn root_nothing_goes_between_a_plan_and_its_mount() {
    let test = "root_nothing_goes_between_a_plan_and_its_mount";
    let Some(place) = Place::new(test, "composefs") else { return };
    let store = place.open();
    let layers = unpack(&store);
    let lock = part(&store, "locks").join("layers");
    let mounting = FileLock::shared(&lock).unwrap();
    store.gc(false).unwrap();
    assert_eq!(images(&store, &layers), [true, true, true, false], "somebody is about to mount one");
    drop(mounting);
    // And whoever mounts waits for who takes away.
    let snapshots = store.snapshots("containerd/test");
    let row = snapshots.prepare("container", Some("b"), &Labels::new()).unwrap();
    let (alone, taken) = (FileLock::exclusive(&lock).unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            fs::remove_file(image_of(&store, layers[1])).unwrap();
            taken.store(true, Ordering::Relaxed);
            drop(alone);
        });
        snapshots.hand_out(&row, None).unwrap();
        assert!(taken.load(Ordering::Relaxed) && image_of(&store, layers[1]).exists());
    });
    snapshots.remove("container").unwrap();
}

/// Another process that collects, over and over.
#[test]
fn child_that_collects() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let dir = PathBuf::from(dir);
    let store = Store::open(&options(&dir, "composefs")).unwrap();
    while !dir.join("ended").exists() {
        store.gc(false).unwrap();
    }
}

const CHILD: &str = "VELLUM_TEST_COLLECTS";

/// Ends with its test, also when that fails.
struct Collector(std::process::Child, PathBuf);

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = fs::write(self.1.join("ended"), b"");
        let _ = self.0.wait();
    }
}

#[test]
fn root_a_mount_and_a_collection_at_the_same_moment() {
    let test = "root_a_mount_and_a_collection_at_the_same_moment";
    let Some(place) = Place::new(test, "composefs") else { return };
    let store = place.open();
    let layers = unpack(&store);
    let dir = place.dir.as_ref().unwrap().path().to_owned();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_collects", "--nocapture"])
        .env(CHILD, &dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let collector = Collector(child, dir);
    let (made_again, begin) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        for name in CHAIN {
            let (store, layers, made_again) = (&store, &layers, &made_again);
            scope.spawn(move || {
                let snapshots = store.snapshots("containerd/test");
                // On a busy machine it takes longer until the other one has taken an image.
                let goes_on = |round| {
                    round < 30
                        || !made_again.load(Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(60)
                };
                for round in (0..).take_while(|round| goes_on(*round)) {
                    let key = format!("{name}-{round}");
                    if !image_of(store, layers[0]).exists() {
                        made_again.store(true, Ordering::Relaxed);
                    }
                    let row = snapshots.prepare(&key, Some(name), &Labels::new()).unwrap();
                    snapshots.hand_out(&row, None).unwrap_or_else(|e| panic!("{key}: {}", told(&e)));
                    snapshots.remove(&key).unwrap();
                }
            });
        }
    });
    drop(collector);
    assert!(made_again.load(Ordering::Relaxed), "the other process has taken none");
    store.snapshots("containerd/test").cleanup().unwrap();
    assert_clean(&store);
}
