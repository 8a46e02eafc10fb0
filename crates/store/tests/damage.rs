//! Bits flip and files vanish: check names it, repair mends what it can.

mod common;

use common::*;
use std::path::PathBuf;
use vellum_driver::MountOptions;
use vellum_store::*;

fn ids(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().map(|finding| finding.id).collect()
}

/// A store with an image whose blobs are kept, and a container.
fn furnished(test: &str, driver: &str) -> Option<(Place, Store)> {
    let place = Place::new(test, driver)?;
    let store = place.open();
    store.load_image(Image::simple().input(&["x"], true), &Silent).unwrap();
    let options = CreateOptions { name: Some("c".parse().unwrap()), ..CreateOptions::default() };
    store.create_container(&Image::simple().id(), options).unwrap();
    Some((place, store))
}

/// Where a file of the second layer lies on disk.
fn payload(store: &Store, driver: &str) -> PathBuf {
    let layer = store.image_layers(&Image::simple().id()).unwrap()[1].id;
    let home = store.data().join(driver);
    let own = |path: &str| path.starts_with(&layer.to_string()) && path.ends_with("usr/x");
    let content = |path: &str| std::fs::read(home.join(path)).is_ok_and(|bytes| bytes == pattern(100_000));
    let paths = tree(&home);
    let path = paths.iter().find(|path| own(path));
    let path = path.or_else(|| paths.iter().find(|path| path.starts_with("objects/") && content(path)));
    home.join(path.unwrap())
}

#[test]
fn root_a_flipped_bit_is_found_by_name_and_mended_from_the_blob() {
    for driver in DRIVERS {
        let test = "root_a_flipped_bit_is_found_by_name_and_mended_from_the_blob";
        let Some((_place, store)) = furnished(test, driver) else { continue };
        flip_payload(&store, driver);
        let findings = store.check(false, &Silent).unwrap();
        assert_eq!(ids(&findings)[0], "VLM-L004", "{findings:#?}");
        assert_eq!(findings[0].path.as_deref(), Some("/usr/x"));
        let layer = store.image_layers(&Image::simple().id()).unwrap()[1].id;
        assert_eq!(store.layer_tar(layer, &mut std::io::sink()).unwrap_err().code(), Code::Damaged);
        let row = store.find_container("c").unwrap();
        store.mount(&row.id, &MountOptions::default()).unwrap();
        let refused = store.check(true, &Silent).unwrap();
        if *driver == "overlay" {
            assert!(refused.iter().all(|finding| finding.repaired.is_none()), "{refused:#?}");
        }
        let _ = store.umount(&row.id, true, false).unwrap();
        store.check(true, &Silent).unwrap();
        assert_clean(&store);
        let path = store.mount(&row.id, &MountOptions::default()).unwrap();
        if *driver == "overlay" {
            assert_eq!(std::fs::read(path.join("usr/x")).unwrap(), pattern(100_000));
        }
        let _ = store.umount(&row.id, true, false).unwrap();
    }
}

#[test]
fn root_lost_and_damaged_records_are_found_and_written_anew() {
    let test = "root_lost_and_damaged_records_are_found_and_written_anew";
    let Some((_place, store)) = furnished(test, "overlay") else { return };
    let image = Image::simple().id();
    let layers = store.image_layers(&image).unwrap();
    let side = |index: usize, name: &str| {
        store.data().join("layers/overlay").join(layers[index].id.to_string()).join(name)
    };
    let config = store.data().join("config").join(image.digest().hex());
    let record = store.data().join("images/overlay").join(format!("{}.json", image.digest().hex()));
    let blob = |index: usize| {
        store.data().join("blobs/sha256").join(layers[index].blob.as_ref().unwrap().digest.unwrap().hex())
    };
    let flip = |path: &std::path::Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(path, bytes).unwrap();
    };
    type Case<'a> = (&'static str, Box<dyn Fn() + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("VLM-L007", Box::new(|| std::fs::remove_file(side(0, "layer.json")).unwrap())),
        ("VLM-L007", Box::new(|| std::fs::write(side(0, "layer.json"), b"{").unwrap())),
        ("VLM-L006", Box::new(|| flip(&side(1, "recipe")))),
        ("VLM-L006", Box::new(|| std::fs::remove_file(side(1, "recipe")).unwrap())),
        ("VLM-L005", Box::new(|| flip(&side(2, "manifest")))),
        ("VLM-L005", Box::new(|| std::fs::remove_file(side(2, "manifest")).unwrap())),
        ("VLM-I004", Box::new(|| std::fs::remove_file(&record).unwrap())),
        ("VLM-I004", Box::new(|| std::fs::write(&record, b"[").unwrap())),
        ("VLM-B002", Box::new(|| flip(&blob(0)))),
        ("VLM-B001", Box::new(|| std::fs::remove_file(blob(1)).unwrap())),
    ];
    for (number, (id, damage)) in cases.iter().enumerate() {
        damage();
        let findings = store.check(false, &Silent).unwrap();
        assert_eq!(ids(&findings), [*id], "case {number}: {findings:#?}");
        assert!(findings[0].hint.is_some());
        let repaired = store.check(true, &Silent).unwrap();
        assert!(repaired[0].repaired.is_some(), "case {number}: {repaired:#?}");
        assert_clean(&store);
    }
    flip(&config);
    assert_eq!(ids(&store.check(true, &Silent).unwrap()), ["VLM-I002"]);
    assert_eq!(store.image_config(&image).unwrap_err().code(), Code::Damaged);
    store.load_image(Image::simple().input(&["x"], false), &Silent).unwrap();
    assert_clean(&store);
    std::fs::remove_file(&config).unwrap();
    assert_eq!(ids(&store.check(false, &Silent).unwrap()), ["VLM-I001"]);
    store.load_image(Image::simple().input(&["x"], false), &Silent).unwrap();
    assert_clean(&store);
}

#[test]
fn root_a_lost_layer_is_unpacked_again() {
    for driver in DRIVERS {
        let Some((_place, store)) = furnished("root_a_lost_layer_is_unpacked_again", driver) else {
            continue;
        };
        let layer = store.image_layers(&Image::simple().id()).unwrap()[1].id;
        let home = store.data().join(driver);
        lose(&home.join(layer.to_string()));
        assert!(ids(&store.check(false, &Silent).unwrap()).contains(&"VLM-L001"));
        store.check(true, &Silent).unwrap();
        assert_clean(&store);
    }
}

#[test]
fn root_a_lost_or_damaged_catalog_is_rebuilt() {
    for driver in DRIVERS {
        for lost in [true, false] {
            let Some((place, store)) = furnished("root_a_lost_or_damaged_catalog_is_rebuilt", driver) else {
                continue;
            };
            let row = store.find_container("c").unwrap();
            let path = store.mount(&row.id, &MountOptions::default()).unwrap();
            std::fs::write(path.join("mine"), b"mine").unwrap();
            let _ = store.umount(&row.id, true, false).unwrap();
            store.snapshot(&row.id, None).unwrap();
            store.snapshots("ns").prepare("k", None, &Labels::new()).unwrap();
            let images = store.images().unwrap();
            drop(store);
            let catalog = place.root().join("catalog.db");
            for suffix in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{suffix}", catalog.display()));
            }
            if lost {
                std::fs::remove_file(&catalog).unwrap();
            } else {
                std::fs::write(&catalog, [0x55; 40960]).unwrap();
            }
            assert_eq!(Store::open(&place.options()).unwrap_err().code(), Code::Damaged);
            let told = Store::check_at(&place.options(), false, &Silent).unwrap();
            assert_eq!(ids(&told), [if lost { "VLM-C002" } else { "VLM-C001" }], "{told:#?}");
            let findings = Store::check_at(&place.options(), true, &Silent).unwrap();
            assert_eq!(ids(&findings), [if lost { "VLM-C002" } else { "VLM-C001" }], "{findings:#?}");
            let store = place.open();
            assert_eq!(store.images().unwrap(), images);
            let row = store.find_container("c").unwrap();
            assert_eq!(store.save_points(&row.id).unwrap().len(), 1);
            assert_eq!(store.snapshots("ns").walk().unwrap().len(), 1);
            let path = store.mount(&row.id, &MountOptions::default()).unwrap();
            assert_eq!(std::fs::read(path.join("mine")).unwrap(), b"mine");
            let _ = store.umount(&row.id, true, false).unwrap();
            assert_clean(&store);
            store.create_container(&row.image, CreateOptions::default()).unwrap();
            assert_clean(&store);
        }
    }
}

/// A bit flips in a file of the second layer, and its times stay.
fn flip_payload(store: &Store, driver: &str) {
    let path = payload(store, driver);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[777] ^= 4;
    let times = path.metadata().unwrap().modified().unwrap();
    unlocked(&path, || {
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    });
}

/// A layer's folder is gone.
fn lose(folder: &std::path::Path) {
    unlocked(&folder.join("tree"), || std::fs::remove_dir_all(folder).unwrap());
}

/// An image without kept blobs, and a container.
fn without_blobs(test: &str, driver: &str) -> Option<(Place, Store)> {
    let place = Place::new(test, driver)?;
    let store = place.open();
    store.load_image(Image::simple().input(&["x"], false), &Silent).unwrap();
    let options = CreateOptions { name: Some("user".parse().unwrap()), ..CreateOptions::default() };
    store.create_container(&Image::simple().id(), options).unwrap();
    Some((place, store))
}

#[test]
fn root_loading_the_image_again_mends_what_check_found() {
    for driver in DRIVERS {
        let test = "root_loading_the_image_again_mends_what_check_found";
        let Some((place, store)) = without_blobs(test, driver) else { continue };
        let again = |store: &Store| store.load_image(Image::simple().input(&["x"], false), &Silent);
        flip_payload(&store, driver);
        let findings = store.check(true, &Silent).unwrap();
        assert_eq!(ids(&findings), ["VLM-L004"], "{findings:#?}");
        assert!(findings[0].hint.as_ref().unwrap().contains("load the image again"), "{findings:#?}");
        drop(store);
        // What was found is known to every process from now on.
        let store = place.open();
        let refused = store.create_container(&Image::simple().id(), CreateOptions::default()).unwrap_err();
        assert_eq!(refused.code(), Code::Damaged);
        let row = store.find_container("user").unwrap();
        assert_eq!(store.damage_below(&row.id).unwrap().len(), 1);
        let path = store.mount(&row.id, &MountOptions::default()).unwrap();
        std::fs::write(path.join("mine"), b"mine").unwrap();
        if *driver == "overlay" {
            let refused = again(&store).unwrap_err();
            assert_eq!(refused.code(), Code::InUse);
            assert!(told(&refused).contains("container user"), "{}", told(&refused));
            assert_eq!(ids(&store.check(false, &Silent).unwrap()), ["VLM-L004"]);
        }
        let _ = store.umount(&row.id, true, false).unwrap();
        let report = again(&store).unwrap();
        assert_eq!((report.layers_new, report.layers_shared), (1, 2));
        assert_clean(&store);
        assert_nothing_to_collect(&store);
        assert!(store.damage_below(&row.id).unwrap().is_empty());
        let path = store.mount(&row.id, &MountOptions::default()).unwrap();
        if *driver == "overlay" {
            assert_eq!(std::fs::read(path.join("usr/x")).unwrap(), pattern(100_000));
        }
        assert_eq!(std::fs::read(path.join("mine")).unwrap(), b"mine");
        let _ = store.umount(&row.id, true, false).unwrap();
        for layer in store.image_layers(&Image::simple().id()).unwrap() {
            store.layer_tar(layer.id, &mut std::io::sink()).unwrap();
        }
        assert_eq!(again(&store).unwrap().layers_new, 0);
        store.create_container(&Image::simple().id(), CreateOptions::default()).unwrap();
    }
}

#[test]
fn root_a_load_mends_what_it_does_not_find_on_disk_and_keeps_the_blob() {
    for driver in DRIVERS {
        let test = "root_a_load_mends_what_it_does_not_find_on_disk_and_keeps_the_blob";
        let Some((_place, store)) = without_blobs(test, driver) else { continue };
        let layers = store.image_layers(&Image::simple().id()).unwrap();
        for layer in &layers[..2] {
            lose(&store.data().join(driver).join(layer.id.to_string()));
        }
        let report = store.load_image(Image::simple().input(&["x"], true), &Silent).unwrap();
        assert_eq!(report.layers_new, 2);
        assert_clean(&store);
        assert_nothing_to_collect(&store);
        let now = store.image_layers(&Image::simple().id()).unwrap();
        assert_eq!(
            now.iter().map(|l| l.id).collect::<Vec<_>>(),
            layers.iter().map(|l| l.id).collect::<Vec<_>>()
        );
        assert!(now.iter().all(|layer| layer.blob.is_some()));
    }
}

#[test]
fn root_a_save_that_finds_damage_has_the_next_load_mend_it() {
    let test = "root_a_save_that_finds_damage_has_the_next_load_mend_it";
    let Some((_place, store)) = without_blobs(test, "overlay") else { return };
    flip_payload(&store, "overlay");
    let layer = store.image_layers(&Image::simple().id()).unwrap()[1].id;
    assert_eq!(store.layer_tar(layer, &mut std::io::sink()).unwrap_err().code(), Code::Damaged);
    let report = store.load_image(Image::simple().input(&["x"], false), &Silent).unwrap();
    assert_eq!(report.layers_new, 1);
    store.layer_tar(layer, &mut std::io::sink()).unwrap();
    assert_clean(&store);
}

#[test]
fn root_what_is_sound_again_is_not_called_damaged_any_more() {
    let test = "root_what_is_sound_again_is_not_called_damaged_any_more";
    let Some((_place, store)) = without_blobs(test, "overlay") else { return };
    flip_payload(&store, "overlay");
    assert_eq!(ids(&store.check(false, &Silent).unwrap()), ["VLM-L004"]);
    flip_payload(&store, "overlay");
    assert_clean(&store);
    store.create_container(&Image::simple().id(), CreateOptions::default()).unwrap();
}

#[test]
fn root_a_catalog_whose_tables_have_other_columns_is_rebuilt() {
    let test = "root_a_catalog_whose_tables_have_other_columns_is_rebuilt";
    let Some((place, store)) = furnished(test, "overlay") else { return };
    store.snapshots("ns").prepare("k", None, &Labels::new()).unwrap();
    let images = store.images().unwrap();
    drop(store);
    let catalog = place.root().join("catalog.db");
    let log = rusqlite::Connection::open(&catalog).unwrap();
    log.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(log);
    let mut bytes = std::fs::read(&catalog).unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|part| part == what).unwrap();
    let table = find(&bytes, b"CREATE TABLE snapshots");
    let column = table + find(&bytes[table..], b"created ");
    bytes[column] ^= 2;
    std::fs::write(&catalog, bytes).unwrap();
    let told = Store::check_at(&place.options(), false, &Silent).unwrap();
    assert_eq!(ids(&told), ["VLM-C001"], "{told:#?}");
    let findings = Store::check_at(&place.options(), true, &Silent).unwrap();
    assert!(findings.iter().all(|finding| finding.repaired.is_some()), "{findings:#?}");
    let store = place.open();
    assert_eq!(store.images().unwrap(), images);
    assert!(store.snapshots("ns").stat("k").is_ok());
    assert_clean(&store);
}

/// The changes of a container, as `diff` tells them.
fn changes(store: &Store, container: &vellum_types::ContainerId) -> Vec<String> {
    let mut told = Vec::new();
    let mut tell = |change, path: &_| {
        told.push(format!("{change:?} {path}"));
        Ok(())
    };
    store.diff(container, &mut tell).unwrap();
    told
}

#[test]
fn root_a_flipped_bit_in_where_to_look_for_changes_hides_none() {
    let test = "root_a_flipped_bit_in_where_to_look_for_changes_hides_none";
    let Some((place, store)) = furnished(test, "btrfs") else { return };
    let row = store.find_container("c").unwrap();
    let path = store.mount(&row.id, &MountOptions::default()).unwrap();
    std::fs::write(path.join("mine"), b"mine").unwrap();
    let _ = store.umount(&row.id, true, false).unwrap();
    let since = place.data().join("btrfs").join(row.layer.to_string()).join("since");
    let sound = std::fs::read(&since).unwrap();
    let wanted = changes(&store, &row.id);
    assert!(wanted.iter().any(|line| line.ends_with("mine")), "{wanted:?}");
    for bit in 0..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&since, bytes).unwrap();
        assert_eq!(changes(&store, &row.id), wanted, "bit {bit}");
    }
    // As of a file system that has seen more.
    for other in ["999999999 999999999\n", "7", ""] {
        std::fs::write(&since, other).unwrap();
        assert_eq!(changes(&store, &row.id), wanted, "{other:?}");
    }
}

/// The bytes of the catalog's log that are of its latest beginning: those that SQLite reads.
fn live_log(log: &[u8]) -> usize {
    let frame = 24 + 4096;
    let own =
        |number: &usize| log.get(32 + number * frame + 8..).is_some_and(|bytes| bytes[..8] == log[16..24]);
    32 + (0..log.len() / frame).take_while(own).count() * frame
}

#[test]
fn root_a_flipped_bit_in_the_catalogs_log_is_found_and_nothing_is_lost() {
    let test = "root_a_flipped_bit_in_the_catalogs_log_is_found_and_nothing_is_lost";
    let Some((place, store)) = furnished(test, "overlay") else { return };
    let image = store.images().unwrap()[0].id;
    drop(store);
    let path = place.root().join("catalog.db-wal");
    let (mut flipped_back, mut made_anew) = (0, 0);
    for round in 0..40_usize {
        let store = place.open();
        store.tag(&image, &format!("round:{round}").parse().unwrap()).unwrap();
        let names = store.images().unwrap();
        let containers = store.containers().unwrap();
        drop(store);
        let sound = std::fs::read(&path).unwrap();
        let live = live_log(&sound);
        let mut log = sound.clone();
        // Anywhere, the last frame and the uppermost bits among them.
        let byte = if round % 4 == 0 { live - 1 - round * 8 } else { round * 7919 % live };
        log[byte] ^= 1 << (round % 8);
        std::fs::write(&path, &log).unwrap();
        let found = Store::check_at(&place.options(), false, &Silent).unwrap();
        assert_eq!(found.len(), 1, "round {round}: {found:#?}");
        assert_eq!((found[0].id, found[0].repaired.as_deref()), ("VLM-C004", None));
        assert!(found[0].path.as_ref().unwrap().ends_with("catalog.db-wal"), "{found:#?}");
        assert!(std::fs::read(&path).unwrap() == log, "a check without repair changes nothing");
        let mended = Store::check_at(&place.options(), true, &Silent).unwrap();
        assert!(mended.iter().all(|finding| finding.repaired.is_some()), "round {round}: {mended:#?}");
        *(if mended.len() == 1 { &mut flipped_back } else { &mut made_anew }) += 1;
        assert_eq!(Store::check_at(&place.options(), false, &Silent).unwrap(), [], "round {round}");
        let store = place.open();
        assert_eq!(store.images().unwrap(), names, "round {round}");
        assert_eq!(store.containers().unwrap().len(), containers.len(), "round {round}");
    }
    assert!(flipped_back > 20 && made_anew > 0, "{flipped_back} flipped back, {made_anew} made anew");
}

#[test]
fn root_parents_that_go_in_a_circle_are_found_and_mended() {
    let test = "root_parents_that_go_in_a_circle_are_found_and_mended";
    for driver in DRIVERS {
        let Some((place, store)) = furnished(test, driver) else { continue };
        let image = Image::simple();
        let layers: Vec<_> = store.image_layers(&image.id()).unwrap().iter().map(|layer| layer.id).collect();
        drop(store);
        // In the catalog: the layer in the middle lies on the one on it.
        let catalog = rusqlite::Connection::open(place.root().join("catalog.db")).unwrap();
        let circle = "UPDATE layers SET parent = ?1 WHERE id = ?2";
        catalog.execute(circle, [layers[2].get(), layers[1].get()]).unwrap();
        drop(catalog);
        let told = Store::check_at(&place.options(), false, &Silent).unwrap();
        assert!(!told.is_empty(), "{driver}");
        let store = place.open();
        let created = store.create_container(&image.id(), CreateOptions::default());
        if let Ok(container) = created {
            let _ = store.mount(&container, &MountOptions::default());
            let _ = store.umount(&container, true, true);
        }
        let _ = store.gc(true);
        drop(store);
        let mended = Store::check_at(&place.options(), true, &Silent).unwrap();
        assert!(mended.iter().all(|finding| finding.repaired.is_some()), "{driver}: {mended:#?}");
        assert_eq!(Store::check_at(&place.options(), false, &Silent).unwrap(), [], "{driver}");
        let below = place.open().image_layers(&image.id()).unwrap();
        assert_eq!(below.iter().map(|layer| layer.id).collect::<Vec<_>>(), layers, "{driver}");
        // In the driver's own record of the layer.
        let record =
            ["info", "lower"].map(|name| place.data().join(driver).join(layers[1].to_string()).join(name));
        let record = record.iter().find(|path| path.exists()).unwrap();
        let text = std::fs::read_to_string(record).unwrap();
        let other = text.replace(&layers[0].to_string(), &layers[1].to_string());
        assert_ne!(text, other, "{driver}");
        unlocked(record, || std::fs::write(record, &other).unwrap());
        let told = Store::check_at(&place.options(), false, &Silent).unwrap();
        assert!(!told.is_empty(), "{driver}: {other}");
        Store::check_at(&place.options(), true, &Silent).unwrap();
        let store = place.open();
        store.load_image(image.input(&["x"], true), &Silent).unwrap();
        assert_eq!(store.check(false, &Silent).unwrap(), [], "{driver}");
    }
}
