//! The pool's file as a mounted file system.

use super::{Facts, MARK, PoolFs, image, mountpoint};
use crate::layout::Layout;
use crate::{Code, Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;
use vellum_sys::fsinfo::FileSystem;
use vellum_sys::loopdev::LoopDevice;
use vellum_sys::mount::FsContext;

/// What is found at the mountpoint.
#[derive(Debug)]
pub(super) enum Found {
    /// The pool; here is its root.
    Sound(OwnedFd),
    /// The pool, but it answers with errors only, or takes no writes any more.
    Failed(String),
    /// Nothing is mounted there.
    Nothing,
    /// Something else is mounted there.
    Other,
}

/// Looks what is at the mountpoint.
pub(super) fn look(layout: &Layout, facts: &Facts) -> Found {
    let place = mountpoint(layout);
    let root = match vellum_sys::file::open_folder(rustix::fs::CWD, &place) {
        Ok(root) => root,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Found::Nothing,
        Err(e) => return Found::Failed(e.to_string()),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mark = rustix::fs::openat(&root, MARK, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|file| std::io::read_to_string(std::fs::File::from(file)));
    match mark {
        Ok(id) if id == facts.id => match FileSystem::of(&root) {
            Ok(fs) if fs.read_only => Found::Failed(
                "it takes no writes any more: the kernel made it read-only after an error".into(),
            ),
            Ok(_) => Found::Sound(root),
            Err(e) => Found::Failed(e.to_string()),
        },
        Ok(_) => Found::Other,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && is_mounted(layout) => Found::Other,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Found::Nothing,
        Err(e) => Found::Failed(e.to_string()),
    }
}

/// Whether anything is mounted at the mountpoint. Asks the kernel's table: a file system that has shut down does not even say which mount it is.
pub(super) fn is_mounted(layout: &Layout) -> bool {
    let place =
        std::fs::canonicalize(layout.pool()).map_or_else(|_| mountpoint(layout), |pool| pool.join("data"));
    vellum_sys::mountinfo::at(&place).is_ok_and(|mounts| !mounts.is_empty())
}

/// Attaches the file, unless it is, and mounts it. The caller holds the lock.
pub(super) fn mount(layout: &Layout, fs: PoolFs, preallocated: bool) -> Result<()> {
    let (file, place) = (image(layout), mountpoint(layout));
    crate::layout::make_folder(&place)?;
    let attached = LoopDevice::find(&file).map_err(|e| Error::io("look for the loop device of", &file, e))?;
    let device = match attached {
        Some(device) => device,
        None => LoopDevice::attach(&file, false).map_err(|e| {
            Error::io("attach a loop device to", &file, e)
                .with_hint("the kernel's module `loop` and /dev/loop-control are needed")
        })?,
    };
    let failed = |e: vellum_sys::mount::MountError| refused(layout, fs, e);
    let context = FsContext::open(fs.name()).map_err(failed)?;
    context.string("source", device.path()).map_err(failed)?;
    match (fs, preallocated) {
        (PoolFs::Xfs, _) => context.flag("nouuid").map_err(failed)?,
        (PoolFs::Btrfs, true) => context.flag("nodiscard").map_err(failed)?,
        (PoolFs::Btrfs, false) => context.string("discard", "async").map_err(failed)?,
    }
    if fs == PoolFs::Xfs && !preallocated {
        context.flag("discard").map_err(failed)?;
    }
    context.mount(MountAttrFlags::empty()).map_err(failed)?.attach(&place).map_err(failed)
}

fn refused(layout: &Layout, fs: PoolFs, error: vellum_sys::mount::MountError) -> Error {
    let host = FileSystem::at(&layout.pool()).map_or(u64::MAX, |host| host.free_bytes);
    let (code, hint) = match error.source.raw_os_error() {
        Some(number) if number == Errno::NODEV.raw_os_error() => {
            (Code::Unsupported, format!("this kernel has no {}: load or build its module", fs.name()))
        }
        _ if host < 16 << 20 => (
            Code::Full,
            "the host's disk is full, and the pool writes its log there when it is mounted: make room, then try again"
                .to_owned(),
        ),
        _ => (
            Code::System,
            "`vellum pool check` looks whether the file system is sound; the kernel's log (`dmesg`) says more"
                .to_owned(),
        ),
    };
    Error::caused(code, "mount the store's pool", error).object(image(layout).display()).with_hint(hint)
}

/// Takes the mount off, all that are at the mountpoint, and waits until the device has gone. The caller holds the lock.
pub(super) fn unmount(layout: &Layout, lazy: bool) -> Result<()> {
    let place = mountpoint(layout);
    while is_mounted(layout) {
        match vellum_sys::mount::unmount(&place, lazy) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => return Err(busy(layout)),
            Err(e) => return Err(Error::io("unmount the pool at", &place, e)),
        }
    }
    if lazy {
        return Ok(());
    }
    gone(layout)
}

pub(super) fn busy(layout: &Layout) -> Error {
    Error::new(Code::InUse, "unmount the store's pool", "somebody uses it: a mounted container, or a process with open files")
        .object(mountpoint(layout).display())
        .with_hint("unmount the containers (`vellum umount --all`), stop servers of the store, and end processes that are in it")
}

/// Waits until no device is attached to the file: the kernel finishes an unmount a moment later, and udev looks at devices when they change.
fn gone(layout: &Layout) -> Result<()> {
    let file = image(layout);
    let find = || LoopDevice::find(&file).map_err(|e| Error::io("look for the loop device of", &file, e));
    for _ in 0..75 {
        let Some(device) = find()? else { return Ok(()) };
        // One that somebody attached by hand does not go by itself.
        let _ = device.detach();
        std::thread::sleep(Duration::from_millis(20));
    }
    match find()? {
        None => Ok(()),
        Some(device) => Err(Error::new(
            Code::InUse,
            "let go of the store's pool",
            format!("{} is still in use: by a mounted container, or in another mount namespace", device.path().display()),
        )
        .object(file.display())
        .with_hint(
            "unmount the containers (`vellum umount --all`, or by the engine that has them), and end the processes of other namespaces (`lsns -t mnt`)",
        )),
    }
}

/// The device that the file is attached to.
pub(super) fn attached(layout: &Layout) -> Option<LoopDevice> {
    LoopDevice::find(&image(layout)).ok().flatten()
}

/// The bytes that the file takes on the host.
pub(super) fn allocated(layout: &Layout) -> Result<(u64, u64)> {
    let path = image(layout);
    let meta = path.symlink_metadata().map_err(|e| Error::io("look at the pool's file", &path, e))?;
    Ok((meta.len(), meta.blocks() * 512))
}
