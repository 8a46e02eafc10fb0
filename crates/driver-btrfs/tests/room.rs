//! "No space left" on a file system that has room in chunks of the wrong kind.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::target::Joints;
use vellum_driver::{CreateSpec, Driver, DriverConfig};
use vellum_driver_btrfs::Btrfs;
use vellum_sys::btrfs;
use vellum_sys::file::open_folder;
use vellum_testkit::scratch::{Kind, Scratch, Unavailable};
use vellum_testkit::skip;
use vellum_types::LayerId;

const MIB: usize = 1 << 20;

fn id(n: u32) -> LayerId {
    LayerId::new(n).unwrap()
}

fn is_full<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
}

fn sync(root: &Path) {
    rustix::fs::syncfs(fs::File::open(root).unwrap()).unwrap();
}

/// Sets everything aside for data, and leaves an eighth of it in use, spread over all chunks.
fn fill_with_data(root: &Path) {
    let folder = root.join("data");
    fs::create_dir(&folder).unwrap();
    let content = vec![0x5a; MIB];
    for n in 0_usize.. {
        let path = folder.join(n.to_string());
        if is_full(&fs::write(&path, &content)) {
            let _ = fs::remove_file(path);
            break;
        }
        if n.is_multiple_of(16) {
            sync(root);
        }
    }
    sync(root);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let n: usize = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        if !n.is_multiple_of(8) {
            fs::remove_file(path).unwrap();
        }
    }
    sync(root);
}

/// Makes files with big attributes, which lie in the metadata, until there is no room.
fn fill_metadata(root: &Path) {
    let attribute = [1; 15_000];
    for n in 0..10_000 {
        let made = fs::File::create(root.join(format!("file{n}")));
        if is_full(&made) {
            return;
        }
        let file = made.unwrap();
        for n in 0..100 {
            let none = rustix::fs::XattrFlags::empty();
            match rustix::fs::fsetxattr(&file, format!("user.{n}"), &attribute, none) {
                Err(rustix::io::Errno::NOSPC) => return,
                result => result.unwrap(),
            }
        }
    }
    panic!("fifteen gigabytes of attributes fit");
}

fn open(scratch: &Scratch) -> Btrfs {
    let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
    Btrfs::open(&scratch.path().join("home"), config).unwrap()
}

fn full_of_the_wrong_kind() -> Result<(Scratch, Btrfs), Unavailable> {
    let scratch = Scratch::sized(Kind::Btrfs, 256)?;
    let driver = open(&scratch);
    driver.create(id(1), &CreateSpec::default()).unwrap();
    fs::write(driver.home().join("1/tree/file"), "x").unwrap();
    let _ = driver.commit(id(1), None, &Joints::default()).unwrap();
    sync(scratch.path());
    fill_with_data(scratch.path());
    fill_metadata(scratch.path());
    Ok((scratch, driver))
}

fn fact(driver: &Btrfs, name: &str) -> Option<String> {
    let status = driver.status().unwrap();
    status.into_iter().find(|(found, _)| found == name).map(|(_, value)| value)
}

/// Snapshots without the driver, until the kernel has no room for one more.
fn snapshot_until_full(scratch: &Scratch, driver: &Btrfs) {
    let aside = open_folder(rustix::fs::CWD, scratch.path()).unwrap();
    let tree = open_folder(rustix::fs::CWD, driver.home().join("1/tree")).unwrap();
    for n in 0..10_000 {
        let made = btrfs::snapshot(&tree, &aside, OsStr::new(&format!("snapshot{n}")));
        if is_full(&made) {
            return;
        }
        made.unwrap();
    }
    panic!("ten thousand snapshots fit");
}

#[test]
fn loop_a_balance_makes_room_for_a_container_where_only_chunks_of_data_have_some() {
    let (scratch, driver) = match full_of_the_wrong_kind() {
        Ok(made) => made,
        Err(Unavailable::Missing(reason)) => skip!("{reason}"),
        Err(error) => panic!("{error}"),
    };
    snapshot_until_full(&scratch, &driver);
    let space = rustix::fs::statvfs(scratch.path()).unwrap();
    let free = space.f_bfree * space.f_frsize;
    assert!(free > 100 << 20, "{free}");
    let said = fact(&driver, "Shortage").unwrap_or_default();
    assert!(said.contains("metadata") && said.contains("vellum gc"), "{said}");

    driver.create(id(2), &CreateSpec { parent: Some(id(1)), ..CreateSpec::default() }).unwrap();
    assert_eq!(fs::read(driver.home().join("2/tree/file")).unwrap(), b"x");
    assert_eq!(fact(&driver, "Shortage"), None);
    driver.copy(id(2), id(3)).unwrap();
    assert_eq!(driver.make_room().unwrap(), 0);

    // Once more: what was set free is used, and chunks of data still hold room. This time it is `gc` that is called.
    fill_metadata(&scratch.folder("again").unwrap());
    assert!(fact(&driver, "Shortage").is_some());
    assert!(driver.make_room().unwrap() > 0);
    assert_eq!(fact(&driver, "Shortage"), None);
    scratch.close().unwrap();
}

#[test]
fn loop_after_gc_the_space_of_what_was_removed_is_back() {
    let scratch = match Scratch::sized(Kind::Btrfs, 512) {
        Ok(scratch) => scratch,
        Err(Unavailable::Missing(reason)) => skip!("{reason}"),
        Err(error) => panic!("{error}"),
    };
    let free = || {
        let space = rustix::fs::statvfs(scratch.path()).unwrap();
        space.f_bfree * space.f_frsize
    };
    let driver = open(&scratch);
    let trash = scratch.folder("trash").unwrap();
    sync(scratch.path());
    let before = free();
    for n in 1..=20 {
        driver.create(id(n), &CreateSpec::default()).unwrap();
        let tree = driver.home().join(id(n).to_string()).join("tree");
        for file in 0..200 {
            fs::write(tree.join(file.to_string()), vec![1; 20_000]).unwrap();
        }
    }
    sync(scratch.path());
    assert!(before - free() > 70 << 20);
    for n in 1..=20 {
        let _ = driver.remove(id(n), &trash).unwrap();
    }
    for entry in fs::read_dir(&trash).unwrap() {
        driver.purge(&entry.unwrap().path()).unwrap();
    }
    driver.make_room().unwrap();
    assert!(before.saturating_sub(free()) < 4 << 20, "{before} {}", free());
    scratch.close().unwrap();
}
