//! Pools: made, mounted again, grown, trimmed, filled, and taken away; on an ext4 of their own.

mod common;

use common::pools::{BOTH, Host, devices, spec};
use common::*;
use std::process::{Command, Stdio};
use vellum_driver::{Ability, MountOptions};
use vellum_store::*;
use vellum_sys::fsinfo::FileSystem;

const MIB: u64 = 1 << 20;

fn create(store: &Store, image: &Image, name: &str) -> vellum_types::ContainerId {
    let options = CreateOptions { name: Some(name.parse().unwrap()), ..CreateOptions::default() };
    store.create_container(&image.id(), options).unwrap()
}

/// Bytes used in the pool, with all that was written on the disk.
fn used(store: &Store) -> u64 {
    rustix::fs::syncfs(std::fs::File::open(store.data()).unwrap()).unwrap();
    let fs = FileSystem::at(store.data()).unwrap();
    fs.total_bytes - fs.free_bytes
}

#[test]
fn loop_a_pool_gives_reflinks_to_a_store_on_ext4() {
    let test = "loop_a_pool_gives_reflinks_to_a_store_on_ext4";
    for fs in BOTH {
        let Some(host) = Host::new(test, 700) else { return };
        let plain = Store::open(&host.options("overlay")).unwrap();
        assert!(!plain.capabilities().has(Ability::Reflink));
        drop(plain);
        // Given to a store that is there, and has nothing in it. It promises more than the host has.
        let Some(made) = host.pool(test, spec(fs, 1024)) else { return };
        assert!(made.mounted && made.missing > 0 && made.allocated < 200 * MIB, "{made:?}");
        assert_eq!(host.devices(), 1);
        let store = Store::open(&host.options("overlay")).unwrap();
        assert!(store.capabilities().has(Ability::Reflink));
        assert_eq!(store.info().unwrap().pool.unwrap(), host.status());
        let image = Image::new(vec![Tar::new().file("large", &pattern(24 << 20)).end()]);
        store.load_image(image.input(&["large"], false), &Silent).unwrap();
        let id = create(&store, &image, "c");
        let path = store.mount(&id, &MountOptions::default()).unwrap();
        let before = used(&store);
        std::fs::write(path.join("large.new"), b"x").unwrap();
        let mut file = std::fs::File::options().append(true).open(path.join("large")).unwrap();
        std::io::Write::write_all(&mut file, b"one more").unwrap();
        drop(file);
        let taken = used(&store).saturating_sub(before);
        assert!(taken < 2 * MIB, "the first write took {taken} bytes on {}", fs.name());
        let _ = store.umount(&id, true, false).unwrap();
        assert_clean(&store);
        drop(store);
        Store::reset(&host.options("overlay")).unwrap();
        host.assert_off();
        assert!(!host.image().exists());
    }
}

#[test]
fn loop_the_driver_btrfs_works_in_a_pool() {
    let test = "loop_the_driver_btrfs_works_in_a_pool";
    let Some(host) = Host::new(test, 700) else { return };
    let Some(_) = host.pool(test, spec(PoolFs::Btrfs, 512)) else { return };
    let store = Store::open(&host.options("btrfs")).unwrap();
    let image = Image::simple();
    store.load_image(image.input(&["img"], false), &Silent).unwrap();
    let id = create(&store, &image, "c");
    let path = store.mount(&id, &MountOptions::default()).unwrap();
    std::fs::write(path.join("new"), b"x").unwrap();
    let _ = store.umount(&id, true, false).unwrap();
    let name = Some("made".parse().unwrap());
    store.commit(&id, &CommitOptions { name, ..CommitOptions::default() }).unwrap();
    assert_clean(&store);
    drop(store);
    Store::reset(&host.options("btrfs")).unwrap();
    host.assert_off();
}

const CHILD: &str = "VELLUM_TEST_POOL_CHILD";

/// A new namespace has copies of all mounts, also of those that other tests are about to take off.
fn let_go_of_others(own: &std::path::Path) {
    // Others' mounts may be anywhere, also where names are not UTF-8.
    let table = std::fs::read("/proc/self/mounts").unwrap();
    let table = String::from_utf8_lossy(&table);
    let places = table.lines().rev().filter_map(|line| line.split(' ').nth(1).map(std::path::Path::new));
    for place in places.filter(|place| place.starts_with(std::env::temp_dir()) && !own.starts_with(place)) {
        if !place.starts_with(own) {
            let _ = vellum_sys::mount::unmount(place, true);
        }
    }
}

/// Opens the store of another test, in a namespace where its pool is not mounted if it is told so, and finds the image.
#[test]
fn child_that_opens() {
    let Some(dir) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else { return };
    let data = dir.join("root/pool/data");
    if std::env::var_os("VELLUM_TEST_ELSEWHERE").is_some() {
        let_go_of_others(&dir);
        vellum_sys::mount::unmount(&data, false).unwrap();
        assert!(!data.join(".pool").exists());
    }
    let store = Store::open(&options(&dir, "overlay")).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    assert!(data.join(".pool").exists());
    assert_eq!(devices(&dir.join("root/pool/image")), 1, "two devices of one file system destroy it");
}

fn child(host: &Host, before: &[&str]) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut words: Vec<std::ffi::OsString> = before.iter().map(Into::into).collect();
    words.extend([exe.into(), "--exact".into(), "child_that_opens".into(), "--nocapture".into()]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env(CHILD, host.path()).stdout(Stdio::null());
    command
}

#[test]
fn loop_a_pool_is_mounted_by_whoever_needs_it_and_only_once() {
    let test = "loop_a_pool_is_mounted_by_whoever_needs_it_and_only_once";
    for fs in BOTH {
        let Some(host) = Host::new(test, 600) else { return };
        let Some(_) = host.pool(test, spec(fs, 400)) else { return };
        let options = host.options("overlay");
        let image = Image::simple();
        let store = Store::open(&options).unwrap();
        store.load_image(image.input(&["img"], false), &Silent).unwrap();
        // Nobody takes it off below a store that is open.
        assert_eq!(Store::pool_unmount(&options).unwrap_err().code(), Code::InUse);
        drop(store);
        for round in 0..3 {
            // As a reboot does.
            Store::pool_unmount(&options).unwrap();
            host.assert_off();
            assert!(!host.status().mounted && host.status().device.is_none());
            let mut children: Vec<_> = (0..4).map(|_| child(&host, &[]).spawn().unwrap()).collect();
            for child in &mut children {
                assert!(child.wait().unwrap().success(), "round {round}");
            }
            assert_eq!((host.mounts().len(), host.devices()), (1, 1));
        }
        // In a namespace that does not see it, the device that is there is mounted again.
        let mut other = child(&host, &["unshare", "--mount", "--propagation", "private"]);
        assert!(other.env("VELLUM_TEST_ELSEWHERE", "1").status().unwrap().success());
        assert_eq!((host.mounts().len(), host.devices()), (1, 1));
        let store = Store::open(&options).unwrap();
        assert_clean(&store);
        drop(store);
        Store::reset(&options).unwrap();
        host.assert_off();
    }
}

#[test]
fn loop_a_pool_grows_by_itself_while_it_fills() {
    let test = "loop_a_pool_grows_by_itself_while_it_fills";
    for fs in BOTH {
        let Some(host) = Host::new(test, 2048) else { return };
        let Some(made) = host.pool(test, spec(fs, 300)) else { return };
        let store = Store::open(&host.options("overlay")).unwrap();
        // More than it has, in one layer, so that it must grow in the middle.
        let tar = (0..4).fold(Tar::new(), |tar, n| tar.file(&format!("{n}"), &vec![n; 100 << 20])).end();
        store
            .import(ImportSource::Tar(Box::new(&tar[..])), Some(&"large".parse().unwrap()), &Silent)
            .unwrap();
        let grown = host.status();
        assert!(grown.size >= 2 * made.size, "{grown:?}");
        assert!(grown.free.unwrap() + grown.used.unwrap() > 500 * MIB, "{grown:?}");
        assert_clean(&store);
        // By hand, and never smaller.
        let larger = store.pool_grow(Some(grown.size + 128 * MIB)).unwrap();
        assert_eq!(larger.size, grown.size + 128 * MIB);
        assert_eq!(store.pool_grow(Some(300 * MIB)).unwrap_err().code(), Code::Invalid);
        drop(store);
        // The size stays.
        Store::pool_unmount(&host.options("overlay")).unwrap();
        let store = Store::open(&host.options("overlay")).unwrap();
        assert!(FileSystem::at(store.data()).unwrap().total_bytes > grown.size - 100 * MIB);
        drop(store);
        Store::reset(&host.options("overlay")).unwrap();
        host.assert_off();
    }
}

#[test]
fn loop_the_host_gets_back_what_is_removed() {
    let test = "loop_the_host_gets_back_what_is_removed";
    for fs in BOTH {
        let Some(host) = Host::new(test, 900) else { return };
        let Some(_) = host.pool(test, spec(fs, 700)) else { return };
        let store = Store::open(&host.options("overlay")).unwrap();
        let image = Image::bulky(5, 2, 40);
        store.load_image(image.input(&["large"], false), &Silent).unwrap();
        let full = host.status().allocated;
        store.remove_image("large", false).unwrap();
        let report = store.gc(false).unwrap();
        let given = full.saturating_sub(host.status().allocated);
        assert!(given > 70 * MIB, "{given} bytes came back of {}; {report:?}", fs.name());
        assert!(report.trimmed.is_some());
        assert_nothing_to_collect(&store);
        drop(store);
        Store::reset(&host.options("overlay")).unwrap();
    }
}

#[test]
fn loop_a_full_host_is_an_error_that_loses_nothing() {
    let test = "loop_a_full_host_is_an_error_that_loses_nothing";
    for fs in BOTH {
        let Some(host) = Host::new(test, 400) else { return };
        let Some(_) = host.pool(test, spec(fs, 2048)) else { return };
        let (kept, big) = (Image::simple(), Image::bulky(9, 3, 24));
        let store = Store::open(&host.options("overlay")).unwrap();
        store.load_image(kept.input(&["kept"], false), &Silent).unwrap();
        let id = create(&store, &kept, "c");
        let filler = host.fill(20);
        // With a floor nothing is begun.
        let careful = Store::open(&host.careful("overlay")).unwrap();
        let refused = careful.load_image(big.input(&["big"], false), &Silent).unwrap_err();
        assert_eq!(refused.code(), Code::Full, "{}", told(&refused));
        drop(careful);
        // Without one it is begun, and fails.
        let error = store.load_image(big.input(&["big"], false), &Silent).unwrap_err();
        assert_eq!(error.code(), Code::Full, "{}", told(&error));
        assert!(error.hint().unwrap().contains("host"), "{:?}", error.hint());
        drop(store);
        std::fs::remove_file(filler).unwrap();
        // The next process that opens the store mends what failed.
        let store = Store::open(&host.options("overlay")).unwrap_or_else(|e| panic!("{}", told(&e)));
        assert_eq!(store.images().unwrap().len(), 1);
        assert!(host.status().failure.is_none());
        assert_clean(&store);
        store.gc(false).unwrap();
        let path = store.mount(&id, &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read(path.join("usr/x")).unwrap(), pattern(100_000));
        let _ = store.umount(&id, true, false).unwrap();
        store.load_image(big.input(&["big"], false), &Silent).unwrap();
        assert_clean(&store);
        drop(store);
        let check = Store::pool_check(&host.options("overlay"), false).unwrap();
        assert!(check.findings.is_empty(), "{check:?}");
        Store::reset(&host.options("overlay")).unwrap();
        host.assert_off();
    }
}

#[test]
fn loop_a_load_is_given_up_before_the_host_falls_below_its_floor() {
    let test = "loop_a_load_is_given_up_before_the_host_falls_below_its_floor";
    for fs in BOTH {
        let Some(host) = Host::new(test, 1200) else { return };
        let Some(_) = host.pool(test, spec(fs, 2048)) else { return };
        let store = Store::open(&host.careful("overlay")).unwrap();
        let floor = host.careful("overlay").floor.bytes;
        let filler = host.fill((floor >> 20) + 60);
        // One layer, so that nobody looks between layers.
        let large = Image::bulky(9, 1, 160);
        for kind in ["load", "import"] {
            let error = match kind {
                "load" => store.load_image(large.input(&["large"], false), &Silent).unwrap_err(),
                _ => {
                    store.import(ImportSource::Tar(Box::new(&large.tars[0][..])), None, &Silent).unwrap_err()
                }
            };
            assert_eq!(error.code(), Code::Full, "{}", told(&error));
            assert!(told(&error).contains("kept in reserve"), "{}", told(&error));
            let left = FileSystem::at(host.path()).unwrap().free_bytes;
            let _ = store.gc(false).unwrap();
            assert!(left > floor / 4, "{kind} on {}: {} MiB are left", fs.name(), left / MIB);
        }
        assert!(store.images().unwrap().is_empty());
        assert_nothing_to_collect(&store);
        std::fs::remove_file(filler).unwrap();
        store.load_image(large.input(&["large"], false), &Silent).unwrap();
        assert_clean(&store);
        drop(store);
        Store::reset(&host.options("overlay")).unwrap();
        host.assert_off();
    }
}

/// Has the file system of the pool stop, as it does by itself when its log cannot be written.
fn shut_down(store: &Store) -> bool {
    let done = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(store.data()).status();
    done.is_ok_and(|status| status.success())
}

#[test]
fn loop_a_pool_that_failed_says_so_and_is_mounted_anew() {
    let test = "loop_a_pool_that_failed_says_so_and_is_mounted_anew";
    let Some(host) = Host::new(test, 600) else { return };
    let Some(_) = host.pool(test, spec(PoolFs::Xfs, 400)) else { return };
    let options = host.options("overlay");
    let image = Image::simple();
    let store = Store::open(&options).unwrap();
    store.load_image(image.input(&["kept"], false), &Silent).unwrap();
    let id = create(&store, &image, "c");
    let path = store.mount(&id, &MountOptions::default()).unwrap();
    std::fs::write(path.join("synced"), b"x").unwrap();
    rustix::fs::syncfs(std::fs::File::open(&path).unwrap()).unwrap();
    if !shut_down(&store) {
        return vellum_testkit::skip::record(test, "xfs_io is missing");
    }
    let error = store.load_image(Image::big(3, 2, 20).input(&["big"], false), &Silent).unwrap_err();
    let text = format!("{} {:?}", told(&error), error.hint());
    assert!(text.contains("failed") && text.contains("vellum pool check"), "{text}");
    assert!(host.status().failure.is_some(), "{:?}", host.status());
    drop(store);
    // A container is mounted from it: that is told, and nothing is done.
    let error = Store::open(&options).unwrap_err();
    let text = format!("{} {:?}", told(&error), error.hint());
    assert!(text.contains("vellum umount --all"), "{text}");
    assert_eq!(Store::pool_check(&options, false).unwrap_err().code(), Code::InUse);
    vellum_sys::mount::unmount(&path, false).unwrap();
    let check = Store::pool_check(&options, false).unwrap();
    assert!(check.findings.is_empty() && check.repaired.len() == 1, "{check:?}");
    let store = Store::open(&options).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    assert_clean(&store);
    let path = store.mount(&id, &MountOptions::default()).unwrap();
    assert_eq!(std::fs::read(path.join("synced")).unwrap(), b"x");
    let _ = store.umount(&id, true, false).unwrap();
    // And once more, mended by the next one that opens.
    assert!(shut_down(&store));
    drop(store);
    assert_clean(&Store::open(&options).unwrap());
    Store::reset(&options).unwrap();
    host.assert_off();
}

#[test]
fn loop_damage_to_a_pools_file_system_is_found_and_mended() {
    use std::os::unix::fs::FileExt as _;
    let test = "loop_damage_to_a_pools_file_system_is_found_and_mended";
    let Some(host) = Host::new(test, 600) else { return };
    let Some(_) = host.pool(test, spec(PoolFs::Xfs, 400)) else { return };
    let options = host.options("overlay");
    let store = Store::open(&options).unwrap();
    store.load_image(Image::simple().input(&["kept"], false), &Silent).unwrap();
    drop(store);
    Store::pool_unmount(&options).unwrap();
    // The copy of the superblock in the second of four groups.
    let file = std::fs::File::options().write(true).open(host.image()).unwrap();
    file.write_all_at(&[0xff; 4096], 100 << 20).unwrap();
    drop(file);
    let check = Store::pool_check(&options, false).unwrap();
    assert!(check.findings.len() == 1 && check.repaired.is_empty(), "{check:?}");
    let check = Store::pool_check(&options, true).unwrap();
    assert!(check.findings.is_empty() && check.repaired.len() == 1, "{check:?}");
    let check = Store::pool_check(&options, false).unwrap();
    assert!(check.findings.is_empty() && check.repaired.is_empty(), "{check:?}");
    let store = Store::open(&options).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    assert_clean(&store);
    drop(store);
    Store::reset(&options).unwrap();
    host.assert_off();
}

#[test]
fn loop_a_preallocated_pool_does_not_care_for_a_full_host() {
    let test = "loop_a_preallocated_pool_does_not_care_for_a_full_host";
    for fs in BOTH {
        let Some(host) = Host::new(test, 700) else { return };
        let too_large = PoolSpec { preallocate: true, ..spec(fs, 2048) };
        let error = Store::pool_create(&host.options("overlay"), &too_large).unwrap_err();
        assert_eq!(error.code(), Code::Full, "{}", told(&error));
        let Some(made) = host.pool(test, PoolSpec { preallocate: true, ..spec(fs, 400) }) else { return };
        assert!(made.allocated >= made.size && made.missing == 0, "{made:?}");
        let store = Store::open(&host.options("overlay")).unwrap();
        let filler = host.fill(12);
        let image = Image::bulky(9, 3, 24);
        store.load_image(image.input(&["big"], false), &Silent).unwrap();
        assert_clean(&store);
        store.remove_image("big", false).unwrap();
        store.gc(false).unwrap();
        assert!(host.status().allocated >= made.size, "it keeps its room");
        std::fs::remove_file(filler).unwrap();
        drop(store);
        Store::reset(&host.options("overlay")).unwrap();
        host.assert_off();
    }
}

fn noted(host: &Host) -> String {
    let catalog = rusqlite::Connection::open(host.path().join("root/catalog.db")).unwrap();
    catalog.query_row("SELECT value FROM meta WHERE key = 'incompat'", [], |row| row.get(0)).unwrap()
}

#[test]
fn loop_a_pool_is_removed_only_when_nothing_is_in_it() {
    let test = "loop_a_pool_is_removed_only_when_nothing_is_in_it";
    let Some(host) = Host::new(test, 800) else { return };
    let options = host.options("overlay");
    let Some(_) = host.pool(test, spec(PoolFs::Xfs, 400)) else { return };
    assert_eq!(Store::pool_create(&options, &spec(PoolFs::Xfs, 400)).unwrap_err().code(), Code::Exists);
    let store = Store::open(&options).unwrap();
    store.load_image(Image::simple().input(&["img"], false), &Silent).unwrap();
    assert_eq!(Store::pool_remove(&options).unwrap_err().code(), Code::InUse, "it is open");
    drop(store);
    let error = Store::pool_remove(&options).unwrap_err();
    assert!(error.code() == Code::InUse && told(&error).contains("1 images"), "{}", told(&error));
    let store = Store::open(&options).unwrap();
    store.remove_image("img", false).unwrap();
    drop(store);
    assert_eq!(noted(&host), "pool");
    // Somebody has a file in it open.
    let open = std::fs::File::open(host.path().join("root/pool/data/.pool")).unwrap();
    assert_eq!(Store::pool_remove(&options).unwrap_err().code(), Code::InUse);
    drop(open);
    assert_clean(&Store::open(&options).unwrap());
    Store::pool_remove(&options).unwrap();
    host.assert_off();
    assert!(!host.path().join("root/pool").exists());
    assert_eq!(noted(&host), "");
    // It goes on without one, and with layers of its own it gets none.
    let store = Store::open(&options).unwrap();
    assert!(store.info().unwrap().pool.is_none());
    store.load_image(Image::simple().input(&["img"], false), &Silent).unwrap();
    assert_clean(&store);
    drop(store);
    let error = Store::pool_create(&options, &spec(PoolFs::Xfs, 400)).unwrap_err();
    assert!(error.code() == Code::InUse && error.hint().unwrap().contains("vellum save"), "{error:?}");
    assert_eq!(Store::pool_grow(&Store::open(&options).unwrap(), None).unwrap_err().code(), Code::NotFound);
    Store::reset(&options).unwrap();
}

#[test]
fn loop_what_is_lost_of_a_pool_is_damage_and_never_an_empty_store() {
    let test = "loop_what_is_lost_of_a_pool_is_damage_and_never_an_empty_store";
    let Some(host) = Host::new(test, 800) else { return };
    let options = host.options("overlay");
    let Some(_) = host.pool(test, spec(PoolFs::Xfs, 400)) else { return };
    let store = Store::open(&options).unwrap();
    store.load_image(Image::simple().input(&["img"], false), &Silent).unwrap();
    drop(store);
    let (root, pool) = (host.path().join("root"), host.path().join("root/pool"));
    // The note that there is one.
    std::fs::rename(pool.join("pool.json"), host.path().join("aside")).unwrap();
    assert_eq!(Store::open(&options).unwrap_err().code(), Code::Damaged);
    assert!(pool.join("image").exists(), "what the catalog speaks of is no garbage");
    std::fs::rename(host.path().join("aside"), pool.join("pool.json")).unwrap();
    assert_clean(&Store::open(&options).unwrap());
    // The file.
    Store::pool_unmount(&options).unwrap();
    std::fs::rename(pool.join("image"), host.path().join("aside")).unwrap();
    assert_eq!(Store::open(&options).unwrap_err().code(), Code::Damaged);
    std::fs::rename(host.path().join("aside"), pool.join("image")).unwrap();
    // The catalog: it is rebuilt from the pool.
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(root.join(name));
    }
    let error = Store::open(&options).unwrap_err();
    assert_eq!(error.code(), Code::Damaged, "{}", told(&error));
    let findings = Store::check_at(&options, true, &Silent).unwrap();
    assert!(findings.iter().all(|finding| finding.repaired.is_some()), "{findings:?}");
    let store = Store::open(&options).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    assert_clean(&store);
    drop(store);
    assert_eq!(noted(&host), "pool");
    // Something else at its place.
    Store::pool_unmount(&options).unwrap();
    let data = pool.join("data");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&data).status().unwrap();
    assert!(mounted.success());
    assert_eq!(Store::open(&options).unwrap_err().code(), Code::Damaged);
    vellum_sys::mount::unmount(&data, false).unwrap();
    Store::reset(&options).unwrap();
    host.assert_off();
}
