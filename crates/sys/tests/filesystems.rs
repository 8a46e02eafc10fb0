//! File systems on loop devices, mounted without a place; needs root.

use rustix::mount::MountAttrFlags;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use vellum_sys::fsinfo::{self, FileSystem, Probed};
use vellum_sys::ioctl::Frozen;
use vellum_sys::loopdev::LoopDevice;
use vellum_sys::mount::{DetachedMount, FsContext, MountId};

/// A new file system of this type. Nothing of it is in the mount table, and all of it goes when this is dropped.
struct Made {
    root: OwnedFd,
    _mount: DetachedMount,
    image: PathBuf,
    _dir: tempfile::TempDir,
}

fn make(name: &str, fs_type: &str) -> Option<Made> {
    let result = (|| {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(320 << 20))
            .map_err(|error| error.to_string())?;
        let mkfs = format!("mkfs.{fs_type}");
        let output =
            Command::new(&mkfs).arg("-q").arg(&image).output().map_err(|e| format!("{mkfs}: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let device = LoopDevice::attach(&image, false).map_err(|error| error.to_string())?;
        let context = FsContext::open(fs_type).map_err(|error| error.to_string())?;
        context.path("source", device.path()).map_err(|error| error.to_string())?;
        let mount = context.mount(MountAttrFlags::empty()).map_err(|error| error.to_string())?;
        let root = mount.open_root().map_err(|error| error.to_string())?;
        Ok(Made { root, _mount: mount, image, _dir: dir })
    })();
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    result.map_err(|reason| println!("SKIP {name}: {reason}")).ok()
}

#[test]
fn loop_xfs_has_reflinks_and_all_that_overlay_wants() {
    let Some(made) = make("loop_xfs_has_reflinks_and_all_that_overlay_wants", "xfs") else { return };
    assert_eq!(FileSystem::of(&made.root).unwrap().name, "xfs");
    for probe in [
        fsinfo::probe_reflink(&made.root),
        fsinfo::probe_d_type(&made.root),
        fsinfo::probe_xattr(&made.root, "trusted.overlay.probe"),
        fsinfo::probe_xattr(&made.root, "user.overlay.probe"),
        fsinfo::probe_acl(&made.root),
        fsinfo::probe_whiteout(&made.root),
        fsinfo::probe_rename_whiteout(&made.root),
    ] {
        assert_eq!(probe.unwrap(), Probed::Works);
    }
    let mut left = rustix::fs::Dir::read_from(&made.root).unwrap();
    assert!(left.all(|entry| entry.unwrap().file_name().to_bytes().starts_with(b".")));
    let image = made.image.clone();
    drop((left, made.root, made._mount));
    // The last user is gone, and the device with it.
    for _ in 0..6000 {
        if LoopDevice::find(&image).unwrap().is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the device stayed");
}

#[test]
fn loop_a_frozen_file_system_makes_writers_wait() {
    let Some(made) = make("loop_a_frozen_file_system_makes_writers_wait", "ext4") else { return };
    assert_eq!(FileSystem::of(&made.root).unwrap().name, "extfs");
    assert_eq!(fsinfo::probe_reflink(&made.root).unwrap(), Probed::Refused(rustix::io::Errno::OPNOTSUPP));
    let frozen = Frozen::new(&made.root).unwrap();
    assert!(Frozen::new(&made.root).is_err(), "already frozen");
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| vellum_sys::file::create(&made.root, "x", 0o600).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        let waits = !writer.is_finished();
        frozen.thaw().unwrap();
        writer.join().unwrap();
        waits
    });
    assert!(written, "the writer waited");
    drop(Frozen::new(&made.root).unwrap());
    vellum_sys::file::create(&made.root, "y", 0o600).unwrap();
}

#[test]
fn root_a_mount_keeps_its_id_when_it_gets_its_place() {
    if !rustix::process::geteuid().is_root() {
        #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
        return println!("SKIP root_a_mount_keeps_its_id_when_it_gets_its_place: needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = FsContext::open("tmpfs").unwrap().mount(MountAttrFlags::MOUNT_ATTR_NOSUID).unwrap();
    let id = mount.id().unwrap();
    mount.set_attributes(MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap();
    mount.attach(dir.path()).unwrap();
    let (at, written) = (MountId::at(dir.path()), std::fs::write(dir.path().join("x"), "x"));
    vellum_sys::mount::unmount(dir.path(), false).unwrap();
    assert_eq!(at.unwrap(), id);
    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_ne!(MountId::at(dir.path()).unwrap(), id);
}

#[test]
fn root_an_idmapped_mount_shows_other_owners() {
    use std::io::BufRead as _;
    let name = "root_an_idmapped_mount_shows_other_owners";
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    let skip = |reason: &dyn std::fmt::Display| println!("SKIP {name}: {reason}");
    if !rustix::process::geteuid().is_root() {
        return skip(&"needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), "x").unwrap();
    // A process in a user namespace, which ends when its input does.
    let holder = Command::new("unshare")
        .args(["-U", "sh", "-c", "echo made; read x"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut holder = match holder {
        Ok(holder) => holder,
        Err(error) => return skip(&error),
    };
    let mut line = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", holder.id()));
    let mapped = std::fs::write(proc.join("uid_map"), "0 4242 10\n")
        .and_then(|()| std::fs::write(proc.join("gid_map"), "0 4242 10\n"))
        .and_then(|()| std::fs::File::open(proc.join("ns/user")));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    let namespace = match mapped {
        Ok(namespace) => namespace,
        Err(error) => return skip(&error),
    };
    let mount = DetachedMount::of_tree(dir.path()).unwrap();
    match mount.set_idmap(std::os::fd::AsFd::as_fd(&namespace)) {
        Ok(()) => {}
        Err(error) => return skip(&error),
    }
    let stat = rustix::fs::statat(&mount, "x", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid), (4242, 4242));
}
