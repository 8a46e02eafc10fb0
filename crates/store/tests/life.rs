//! The life of images and containers, on every driver.

mod common;

use common::*;
use std::io::Write as _;
use vellum_driver::{Change, MountOptions};
use vellum_store::*;
use vellum_types::Digest;

fn each(test: &str, body: fn(&Place)) {
    for driver in DRIVERS {
        if let Some(place) = Place::new(test, driver) {
            body(&place);
        }
    }
}

#[test]
fn root_an_image_goes_in_and_comes_back_bit_for_bit() {
    each("root_an_image_goes_in_and_comes_back_bit_for_bit", |place| {
        let store = place.open();
        let image = Image::simple();
        let report = store.load_image(image.input(&["one", "two:2"], false), &Silent).unwrap();
        assert_eq!((report.layers_new, report.layers_shared), (3, 0));
        assert_eq!(report.id, image.id());
        let again = store.load_image(image.input(&["three"], false), &Silent).unwrap();
        assert_eq!((again.layers_new, again.layers_shared), (0, 3));
        let row = store.find_image("one").unwrap();
        assert_eq!(
            row.names.iter().map(|n| n.familiar()).collect::<Vec<_>>(),
            ["one:latest", "three:latest", "two:2"]
        );
        assert_eq!(row.size, row.unique + row.shared);
        assert_eq!(store.image_config(&row.id).unwrap(), image.config);
        assert_eq!(store.image_manifest(&row.id).unwrap().unwrap(), b"{\"schemaVersion\":2}");
        for (layer, tar) in store.image_layers(&row.id).unwrap().iter().zip(&image.tars) {
            let mut out = Vec::new();
            let diff = store.layer_tar(layer.id, &mut out).unwrap();
            assert_eq!(out, *tar);
            assert_eq!(*diff.digest(), Digest::sha256(tar));
            assert!(store.layer_blob(layer.id).unwrap().is_none());
        }
        assert_eq!(store.find_image(&row.id.short()).unwrap().id, row.id);
        assert_clean(&store);
        assert_nothing_to_collect(&store);
        let removed = store.remove_image("one", false).unwrap();
        assert_eq!(removed.deleted, None);
        assert_eq!(store.remove_image(&row.id.short(), false).unwrap_err().code(), Code::InUse);
        assert_eq!(store.remove_image(&row.id.short(), true).unwrap().layers, 3);
        assert_eq!(store.find_image("two:2").unwrap_err().code(), Code::NotFound);
        store.gc(false).unwrap();
        assert_nothing_to_collect(&store);
        assert!(tree(&store.data().join(&place.driver)).iter().all(|path| !path.contains("diff/")));
    });
}

#[test]
fn loop_a_container_lives_in_a_pool_as_elsewhere() {
    let test = "loop_a_container_lives_in_a_pool_as_elsewhere";
    let kinds = [
        ("overlay", PoolFs::Xfs),
        ("overlay", PoolFs::Btrfs),
        ("btrfs", PoolFs::Btrfs),
        ("composefs", PoolFs::Xfs),
    ];
    for (driver, fs) in kinds {
        if let Some(place) = Place::on_pool(test, driver, fs) {
            written_saved_rolled_back_and_committed(&place);
        }
    }
}

#[test]
fn root_a_container_is_written_saved_rolled_back_and_committed() {
    each(
        "root_a_container_is_written_saved_rolled_back_and_committed",
        written_saved_rolled_back_and_committed,
    );
}

fn written_saved_rolled_back_and_committed(place: &Place) {
    let store = place.open();
    let image = Image::simple();
    store.load_image(image.input(&["img"], false), &Silent).unwrap();
    let options = CreateOptions { name: Some("c".parse().unwrap()), ..CreateOptions::default() };
    let id = store.create_container(&image.id(), options.clone()).unwrap();
    assert_eq!(store.create_container(&image.id(), options).unwrap_err().code(), Code::Exists);
    let path = store.mount(&id, &MountOptions::default()).unwrap();
    assert_eq!(store.find_container("c").unwrap().mounted.as_deref(), Some(&*path));
    assert!(!path.join("etc/a").exists());
    assert_eq!(std::fs::read(path.join("etc/d")).unwrap(), [7; 5000]);
    std::fs::write(path.join("etc/new"), b"one").unwrap();
    std::fs::remove_file(path.join("usr/x")).unwrap();
    let mut told = Vec::new();
    store
        .diff(&id, &mut |change, path| {
            told.push((change, path.to_string()));
            Ok(())
        })
        .unwrap();
    assert!(told.contains(&(Change::Added, "/etc/new".into())), "{told:?}");
    assert!(told.contains(&(Change::Deleted, "/usr/x".into())), "{told:?}");
    assert_eq!(told.len(), 4, "{told:?}");
    let save = store.snapshot(&id, None).unwrap();
    assert_eq!(save.name.as_str(), "s1");
    std::fs::write(path.join("etc/new"), b"two").unwrap();
    assert_eq!(store.rollback(&id, None).unwrap_err().code(), Code::InUse);
    assert_eq!(store.remove_container(&id, false).unwrap_err().code(), Code::InUse);
    assert!(store.umount(&id, false, false).unwrap().unmounted);
    store.rollback(&id, Some(&save.name)).unwrap();
    let path = store.mount(&id, &MountOptions::default()).unwrap();
    assert_eq!(std::fs::read(path.join("etc/new")).unwrap(), b"one");
    assert!(!path.join("usr/x").exists());
    let commit = CommitOptions { name: Some("made".parse().unwrap()), ..CommitOptions::default() };
    let made = store.commit(&id, &commit).unwrap();
    assert_eq!(store.image_layers(&made).unwrap().len(), 4);
    let second = store.create_container(&made, CreateOptions::default()).unwrap();
    let other = store.mount(&second, &MountOptions::default()).unwrap();
    assert_eq!(std::fs::read(other.join("etc/new")).unwrap(), b"one");
    assert!(!other.join("usr/x").exists());
    let base = store.find_image("img").unwrap();
    assert_eq!(base.unique, 0, "every layer of it is in the committed image too");
    let mut out = Vec::new();
    store.export(&second, &mut out).unwrap();
    let imported =
        store.import(ImportSource::Tar(Box::new(&out[..])), Some(&"flat".parse().unwrap()), &Silent).unwrap();
    let third = store.create_container(&imported.id, CreateOptions::default()).unwrap();
    let flat = store.mount(&third, &MountOptions::default()).unwrap();
    assert_eq!(tree(&flat), tree(&other));
    let folder = store.import(ImportSource::Folder(flat.clone()), None, &Silent).unwrap();
    assert_eq!(folder.layers_shared + folder.layers_new, 1);
    assert!(store.container_usage(&id).unwrap().inodes > 0);
    assert_clean(&store);
    let df = store.usage().unwrap();
    assert_eq!((df.containers.count, df.containers.active, df.save_points.count), (3, 3, 1));
    store.remove_container(&id, true).unwrap();
    assert_eq!(store.remove_image("made", false).unwrap_err().code(), Code::InUse);
    store.remove_image("made", true).unwrap();
    for id in [second, third] {
        assert!(store.umount(&id, true, false).unwrap().unmounted);
        store.remove_container(&id, false).unwrap();
    }
    for name in ["img", "flat"] {
        store.remove_image(name, true).unwrap();
    }
    store.gc(false).unwrap();
    assert!(store.containers().unwrap().is_empty());
    let info = store.info().unwrap();
    assert_eq!((info.containers, info.save_points, info.mounted), (0, 0, 0));
    assert_nothing_to_collect(&store);
    assert_clean(&store);
}

#[test]
fn root_what_is_wrong_is_refused_and_leaves_nothing() {
    each("root_what_is_wrong_is_refused_and_leaves_nothing", |place| {
        let store = place.open();
        let image = Image::simple();
        // A tar with another digest than the configuration says.
        let mut input = image.input(&["x"], false);
        let mut wrong = image.layer(1, vellum_archive::compression::Compression::None);
        wrong.blob[600] ^= 1;
        wrong.facts = None;
        input.layers[1] = Box::new(wrong);
        assert_eq!(store.load_image(input, &Silent).unwrap_err().code(), Code::Archive);
        // A blob with another digest than its descriptor says.
        let mut input = image.input(&["x"], false);
        let mut wrong = image.layer(2, vellum_archive::compression::Compression::Gzip);
        wrong.facts.as_mut().unwrap().digest = Some(Digest::sha256(b""));
        input.layers[2] = Box::new(wrong);
        assert_eq!(store.load_image(input, &Silent).unwrap_err().code(), Code::Archive);
        let mut input = image.input(&["x"], false);
        input.layers.pop();
        assert_eq!(store.load_image(input, &Silent).unwrap_err().code(), Code::Archive);
        assert!(store.images().unwrap().is_empty());
        assert_nothing_to_collect(&store);
        let full =
            OpenOptions { floor: Floor { bytes: u64::MAX, permille: 0, inodes: 0 }, ..place.options() };
        let floor = Store::open(&full).unwrap();
        // The floor is never more than half of the file system; on one that is emptier than that, nothing is refused.
        match floor.load_image(image.input(&["x"], false), &Silent) {
            Err(e) => assert_eq!(e.code(), Code::Full),
            Ok(_) => assert_clean(&floor),
        }
    });
}

#[test]
fn root_two_loads_at_once_share_the_work() {
    each("root_two_loads_at_once_share_the_work", |place| {
        let image = Image::big(1, 6, 150);
        let stores = [place.open(), place.open()];
        let reports: Vec<_> = std::thread::scope(|scope| {
            let handles: Vec<_> = stores
                .iter()
                .map(|store| scope.spawn(|| store.load_image(image.input(&["x"], true), &Silent).unwrap()))
                .collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        assert_eq!(reports.iter().map(|report| report.layers_new).sum::<usize>(), 6);
        assert_eq!(reports.iter().map(|report| report.layers_shared).sum::<usize>(), 6);
        let store = place.open();
        for layer in store.image_layers(&image.id()).unwrap() {
            assert!(store.layer_blob(layer.id).unwrap().is_some());
        }
        assert_clean(&store);
        assert_nothing_to_collect(&store);
    });
}

/// A source that takes its time, so that a load has more than one group.
struct Slow(Bytes);

impl LayerSource for Slow {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        std::thread::sleep(std::time::Duration::from_millis(350));
        self.0.open()
    }
}

#[test]
fn root_a_killed_load_goes_on_where_it_was() {
    const CHILD: &str = "VELLUM_TEST_SLOW_LOAD";
    let image = Image::big(5, 10, 5);
    let input = || {
        let layer = |index| image.layer(index, vellum_archive::compression::Compression::None);
        let layers = (0..10).map(|index| Box::new(Slow(layer(index))) as Box<dyn LayerSource>).collect();
        ImageInput { layers, ..image.input(&["x"], false) }
    };
    if let Ok(dir) = std::env::var(CHILD) {
        let store = Store::open(&options(std::path::Path::new(&dir), "overlay")).unwrap();
        let _ = store.load_image(input(), &Silent);
        return;
    }
    let test = "root_a_killed_load_goes_on_where_it_was";
    let Some(place) = Place::new(test, "overlay") else { return };
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, place.dir.as_ref().unwrap().path())
        .env(vellum_sys::fault::VARIABLE, "store.load.ready")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    let store = place.open();
    assert!(store.images().unwrap().is_empty());
    let report = store.load_image(input(), &Silent).unwrap();
    assert!(report.layers_shared > 0, "{report:?}");
    assert_eq!(report.layers_new + report.layers_shared, 10);
    assert_clean(&store);
    assert_nothing_to_collect(&store);
}

#[test]
fn root_a_newer_format_is_refused() {
    let Some(place) = Place::new("root_a_newer_format_is_refused", "vfs") else { return };
    drop(place.open());
    let change = |sql: &str| {
        let catalog = rusqlite::Connection::open(place.root().join("catalog.db")).unwrap();
        catalog.execute_batch(sql).unwrap();
    };
    change("PRAGMA user_version = 99");
    assert_eq!(Store::open(&place.options()).unwrap_err().code(), Code::Unsupported);
    change("PRAGMA user_version = 1; UPDATE meta SET value = 'quantum' WHERE key = 'incompat'");
    let refused = Store::open(&place.options()).unwrap_err();
    assert!(refused.to_string().contains("quantum"), "{refused}");
    change(
        "UPDATE meta SET value = '' WHERE key = 'incompat'; UPDATE meta SET value = 'x' WHERE key = 'ro_compat'",
    );
    let store = place.open();
    assert!(store.info().unwrap().read_only.is_some());
    let refused = store.load_image(Image::simple().input(&[], false), &Silent).unwrap_err();
    assert_eq!(refused.code(), Code::Unsupported);
    drop(store);
    change(
        "UPDATE meta SET value = '' WHERE key = 'ro_compat'; UPDATE meta SET value = 'new' WHERE key = 'compat'",
    );
    assert!(place.open().info().unwrap().read_only.is_none());
}

#[test]
fn root_front_ends_snapshots_live_and_are_roots() {
    each("root_front_ends_snapshots_live_and_are_roots", |place| {
        let store = place.open();
        let snapshots = store.snapshots("containerd/test");
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        snapshots.prepare("k1", None, &labels).unwrap();
        assert_eq!(snapshots.prepare("k1", None, &labels).unwrap_err().code(), Code::Exists);
        assert_eq!(snapshots.prepare("k2", Some("k1"), &labels).unwrap_err().code(), Code::Invalid);
        let made = snapshots.stat("k1").unwrap().created;
        let base = snapshots.commit("base", "k1", None, &labels).unwrap();
        // A committed snapshot is another one, made at this moment.
        assert!(base.created > made && base.updated == base.created);
        snapshots.prepare("k2", Some("base"), &Labels::new()).unwrap();
        snapshots.view("v", Some("base"), &Labels::new()).unwrap();
        snapshots.view("nothing", None, &Labels::new()).unwrap();
        for key in ["v", "nothing"] {
            assert!(snapshots.mounts(key, &MountOptions::default()).unwrap().root.read_only, "{key}");
        }
        assert_eq!(snapshots.commit("c", "nothing", None, &labels).unwrap_err().code(), Code::Invalid);
        assert_eq!(snapshots.remove("base").unwrap_err().code(), Code::InUse);
        assert_eq!(snapshots.update("v", &labels).unwrap().labels, labels);
        assert!(snapshots.usage("base").unwrap().inodes > 0);
        snapshots.mounts("k2", &MountOptions::default()).unwrap();
        store.gc(false).unwrap();
        let keys: Vec<String> = snapshots.walk().unwrap().into_iter().map(|row| row.key).collect();
        assert_eq!(keys, ["base", "k2", "nothing", "v"]);
        assert_clean(&store);
        for key in ["v", "nothing", "k2", "base"] {
            snapshots.remove(key).unwrap();
        }
        assert_nothing_to_collect(&store);
        let _ = std::io::stdout().flush();
    });
}
