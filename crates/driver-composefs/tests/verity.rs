//! Sealed homes. Most machines' kernels or file systems have no fs-verity: what needs it runs in a throwaway machine (`cargo xtask vm`).

mod common;

use common::*;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use vellum_driver::{Driver as _, ErrorKind, MountOptions};
use vellum_driver_composefs::FACTORY;
use vellum_sys::verity;
use vellum_testkit::scratch::Kind;
use vellum_testkit::skip;

/// Runs a test on ext4 and on btrfs, if those have fs-verity here.
macro_rules! sealed {
    ($($name:ident: $test:ident;)+) => {
        mod ext4 { $(#[test] fn $name() { super::sealed!(super::Kind::Ext4, super::$test); })+ }
        mod btrfs { $(#[test] fn $name() { super::sealed!(super::Kind::Btrfs, super::$test); })+ }
    };
    ($kind:expr, $test:path) => {
        match super::Place::new($kind) {
            Ok(place) => $test(&place),
            Err(reason) => super::skip!("{reason}"),
        }
    };
}
use sealed;

sealed! {
    vm_every_object_is_sealed_under_its_name: every_object_is_sealed_under_its_name;
    vm_a_flipped_bit_is_an_error_when_it_is_read: a_flipped_bit_is_an_error_when_it_is_read;
    vm_an_exchanged_object_is_refused_found_and_replaced: an_exchanged_object_is_refused_found_and_replaced;
    vm_an_image_with_another_digest_is_refused: an_image_with_another_digest_is_refused;
    vm_what_is_synced_alone_survives_a_power_cut: what_is_synced_alone_survives_a_power_cut;
    vm_a_home_stays_as_it_was_made: a_home_stays_as_it_was_made;
}

fn every_object_is_sealed_under_its_name(place: &Place) {
    let stage = place.open(true);
    let large = noise(3 << 20);
    // From a stream: one block, some, more than is held in memory, with a hole.
    let files = [
        ("block", noise(4096)),
        ("some", noise(70_000)),
        ("large", large.clone()),
        ("zeros", vec![0; 2 << 20]),
    ];
    stage.layer(1, None, &files);
    // Through a mount: a new file, one that is changed, one that only gets another mode, one that is renamed.
    stage.create(2, Some(1));
    let root = stage.mount(2);
    fs::write(root.join("new"), noise(300_000)).unwrap();
    let mut changed = large.clone();
    changed[1_000_000] ^= 1;
    fs::write(root.join("large"), &changed).unwrap();
    fs::set_permissions(root.join("block"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(root.join("some"), root.join("renamed")).unwrap();
    assert_eq!(fs::read(root.join("block")).unwrap(), noise(4096));
    stage.unmount(2);
    stage.commit(2, Some(1));
    // Once more, as a store has it that is opened again.
    drop(stage);
    let stage = place.open(true);
    let objects = stage.objects();
    assert_eq!(objects.len(), 6, "{objects:?}");
    for (digest, path) in &objects {
        let sealed = verity::measure(fs::File::open(path).unwrap()).unwrap().expect("every object is sealed");
        assert_eq!(*digest, hex(&sealed));
        let written = fs::OpenOptions::new().write(true).open(path).unwrap_err();
        assert_eq!(written.kind(), std::io::ErrorKind::PermissionDenied, "nobody can write to it");
    }
    stage.create(3, Some(2));
    let root = stage.mount(3);
    for (name, content) in
        [("block", noise(4096)), ("renamed", noise(70_000)), ("large", changed), ("new", noise(300_000))]
    {
        assert!(fs::read(root.join(name)).unwrap() == content, "{name}");
    }
    stage.unmount(3);
    for layer in [1, 2] {
        assert_eq!(stage.driver.check(id(layer)).unwrap(), Vec::<String>::new());
    }
}

fn a_flipped_bit_is_an_error_when_it_is_read(place: &Place) {
    let content = noise(3 << 20);
    let stage = place.open(true);
    stage.layer(1, None, &[("file", content.clone()), ("other", noise(5000))]);
    drop(stage);
    place.flip_on_disk(&content[2 << 20..][..4096]);

    let stage = place.open(true);
    stage.create(2, Some(1));
    let file = stage.mount(2).join("file");
    let error = fs::read(&file).map(|bytes| bytes.len()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
    assert_eq!(fs::read(file.with_file_name("other")).unwrap(), noise(5000));
    stage.unmount(2);
    // A load that has been told not to trust the layer's objects replaces just that one.
    stage.driver.distrust(id(1)).unwrap();
    let before = stage.objects();
    stage.layer(3, None, &[("file", content.clone()), ("other", noise(5000))]);
    assert_eq!(before, stage.objects());
    let file = stage.mount(2).join("file");
    assert!(fs::read(&file).unwrap() == content);
    stage.unmount(2);
}

fn an_exchanged_object_is_refused_found_and_replaced(place: &Place) {
    let stage = place.open(true);
    let content = noise(9000);
    stage.layer(1, None, &[("file", content.clone())]);
    let (digest, object) = stage.objects().remove(0);
    // The same content, not sealed.
    fs::remove_file(&object).unwrap();
    fs::write(&object, &content).unwrap();
    stage.is_refused(&digest, "is not sealed with fs-verity");
    // Another content, sealed.
    fs::remove_file(&object).unwrap();
    let other: Vec<u8> = content.iter().map(|byte| !byte).collect();
    fs::write(&object, &other).unwrap();
    let sealed = verity::seal(fs::OpenOptions::new().read(true).write(true).open(&object).unwrap()).unwrap();
    let measured = hex(&verity::measure(sealed).unwrap().unwrap());
    stage.is_refused(&digest, &format!("has the fs-verity digest {measured}"));

    stage.driver.distrust(id(1)).unwrap();
    stage.layer(2, None, &[("file", content.clone())]);
    assert_eq!(stage.driver.check(id(1)).unwrap(), Vec::<String>::new());
    stage.create(3, Some(1));
    assert!(fs::read(stage.mount(3).join("file")).unwrap() == content);
    stage.unmount(3);
}

fn an_image_with_another_digest_is_refused(place: &Place) {
    let stage = place.open(true);
    stage.layer(1, None, &[("file", noise(9000)), ("other", noise(5000))]);
    let _ = stage.driver.prepare(id(1)).unwrap();
    let image = stage.driver.home().join("1/image");
    let digest = stage.objects().into_iter().find(|(_, path)| fs::metadata(path).unwrap().len() == 9000);
    let mut bytes = fs::read(&image).unwrap();
    let at = find(&bytes, &from_hex(&digest.unwrap().0)).expect("the image names the object");
    bytes[at] ^= 1;
    fs::write(&image, &bytes).unwrap();
    stage.create(2, Some(1));
    let root = stage.mount(2);
    let error = fs::read(root.join("file")).map(|bytes| bytes.len()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
    assert_eq!(fs::read(root.join("other")).unwrap(), noise(5000));
    stage.unmount(2);
    assert_eq!(stage.driver.check(id(1)).unwrap(), ["its image is not what its layers give"]);
}

fn what_is_synced_alone_survives_a_power_cut(place: &Place) {
    let stage = place.open(true);
    // What a store has brought to the disk when it was made.
    rustix::fs::syncfs(fs::File::open(place.path()).unwrap()).unwrap();
    let files = [("file", noise(9000)), ("large", noise(3 << 20))];
    stage.layer(1, None, &files);
    stage.driver.sync(id(1)).unwrap();
    let copy = place.copy_of_disk();
    drop(stage);
    place.put_disk(&copy);
    let stage = place.open(true);
    assert_eq!(stage.driver.check(id(1)).unwrap(), Vec::<String>::new());
    stage.create(2, Some(1));
    let root = stage.mount(2);
    for (name, content) in files {
        assert!(fs::read(root.join(name)).unwrap() == content, "{name}");
    }
    stage.unmount(2);
}

fn a_home_stays_as_it_was_made(place: &Place) {
    let stage = place.open(false);
    stage.layer(1, None, &[("file", noise(9000))]);
    drop(stage);
    let stage = place.open(true);
    stage.layer(2, None, &[("file", noise(9001))]);
    for (_, path) in stage.objects() {
        assert_eq!(verity::measure(fs::File::open(path).unwrap()).unwrap(), None);
    }
    stage.create(3, Some(1));
    assert_eq!(fs::read(stage.mount(3).join("file")).unwrap(), noise(9000));
    stage.unmount(3);
    let sealed = |stage: &Stage| {
        let status = stage.driver.status().unwrap();
        status.into_iter().find(|(name, _)| name.contains("fs-verity")).unwrap().1
    };
    assert_eq!(sealed(&stage), "false");
    drop(stage);
    fs::rename(place.path().join("home"), place.path().join("old")).unwrap();
    drop(place.open(true));
    assert_eq!(sealed(&place.open(false)), "true", "a home that is sealed stays that");
}

#[test]
fn root_a_sealed_home_is_refused_where_nothing_verifies() {
    let place = match Place::any(Kind::Tmpfs) {
        Ok(place) => place,
        Err(reason) => skip!("{reason}"),
    };
    drop(place.open(true));
    let home = place.path().join("home");
    assert!(!home.join(".sealed").exists(), "tmpfs has no fs-verity");
    fs::write(home.join(".sealed"), "fs-verity sha256 4096\n").unwrap();
    let refused = place.try_open(true).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    assert!(refused.to_string().contains("sealed"), "{refused}");
    assert!(refused.hint.unwrap().contains("--no-verity"));
    fs::write(home.join(".sealed"), "fs-verity sha512 65536\n").unwrap();
    let refused = place.try_open(true).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    assert!(refused.to_string().contains("sha512"), "{refused}");
}

#[test]
fn root_probes_tell_whether_objects_are_sealed() {
    let place = match Place::any(Kind::Here) {
        Ok(place) => place,
        Err(reason) => skip!("{reason}"),
    };
    let probe = vellum_driver::Factory::probe(&FACTORY, &place.environment());
    let (_, fact) = probe.facts.iter().find(|(name, _)| name == "fs-verity").expect("told in any case");
    let stage = place.open(true);
    stage.layer(1, None, &[("file", noise(9000))]);
    let sealed = verity::measure(fs::File::open(&stage.objects()[0].1).unwrap()).unwrap().is_some();
    assert_eq!(!fact.starts_with("no: "), sealed, "{fact}");
    let plan = stage.driver.mounts(id(1), &MountOptions::default()).unwrap();
    assert_eq!(format!("{plan:?}").contains("verity"), sealed);
}
