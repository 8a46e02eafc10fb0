//! The room that a file system has: making it larger with its device, and telling the device what it does not use.
//!
//! Structures and numbers are those of `fs/xfs/libxfs/xfs_fs.h`, `include/uapi/linux/btrfs.h` and `include/uapi/linux/fs.h`. All of this
//! needs privileges of the host.

use crate::fsinfo::FileSystem;
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const FITRIM: Opcode = opcode::read_write::<TrimRange>(b'X', 121);
const XFS_IOC_FSGEOMETRY_V1: Opcode = opcode::read::<XfsGeometry>(b'X', 100);
const XFS_IOC_FSGROWFSDATA: Opcode = opcode::write::<XfsGrow>(b'X', 110);
const BTRFS_IOC_RESIZE: Opcode = opcode::write::<BtrfsResize>(0x94, 3);
const _: () = assert!(FITRIM == 0xc018_5879);
const _: () = assert!(XFS_IOC_FSGEOMETRY_V1 == 0x8070_5864);
const _: () = assert!(XFS_IOC_FSGROWFSDATA == 0x4010_586e);
const _: () = assert!(BTRFS_IOC_RESIZE == 0x5000_9403);

/// `struct fstrim_range`.
#[repr(C)]
struct TrimRange {
    start: u64,
    length: u64,
    shortest: u64,
}

const _: () = assert!(size_of::<TrimRange>() == 24);

/// `struct xfs_fsop_geom_v1`.
#[repr(C)]
struct XfsGeometry {
    block_size: u32,
    rt_extent_blocks: u32,
    group_blocks: u32,
    groups: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    most_inodes_percent: u32,
    data_blocks: u64,
    rt_blocks: u64,
    rt_extents: u64,
    log_start: u64,
    uuid: [u8; 16],
    stripe: [u32; 2],
    version: i32,
    flags: u32,
    log_sector_size: u32,
    rt_sector_size: u32,
    dir_block_size: u32,
}

const _: () = assert!(size_of::<XfsGeometry>() == 112);
const _: () = assert!(std::mem::offset_of!(XfsGeometry, data_blocks) == 32);
const _: () = assert!(std::mem::offset_of!(XfsGeometry, uuid) == 64);

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    most_inodes_percent: u32,
}

const _: () = assert!(size_of::<XfsGrow>() == 16);

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct BtrfsResize {
    fd: i64,
    name: [u8; 4088],
}

const _: () = assert!(size_of::<BtrfsResize>() == 4096);

/// Makes the file system that `folder` lies in as large as its device, of `device_bytes`, has become. Nothing to do is no error.
///
/// # Errors
/// `EOPNOTSUPP`: only XFS and btrfs are known; otherwise the kernel's. A file system is never made smaller.
pub fn grow_to_device(folder: impl AsFd, device_bytes: u64) -> io::Result<()> {
    let folder = folder.as_fd();
    match FileSystem::of(folder)?.name {
        "xfs" => grow_xfs(folder, device_bytes),
        "btrfs" => grow_btrfs(folder),
        _ => Err(rustix::io::Errno::OPNOTSUPP.into()),
    }
}

fn grow_xfs(folder: BorrowedFd<'_>, device_bytes: u64) -> io::Result<()> {
    // SAFETY: FSGEOMETRY_V1 writes one `struct xfs_fsop_geom_v1`, all of whose bits are numbers.
    let request = unsafe { Getter::<XFS_IOC_FSGEOMETRY_V1, XfsGeometry>::new() };
    // SAFETY: the request is of the type that its number says.
    let now = unsafe { ioctl(folder, request) }?;
    let blocks = device_bytes / u64::from(now.block_size.max(1));
    if blocks <= now.data_blocks {
        return Ok(());
    }
    let wanted = XfsGrow { blocks, most_inodes_percent: now.most_inodes_percent };
    // SAFETY: FSGROWFSDATA reads one `struct xfs_growfs_data`, which is what it is given.
    let request = unsafe { Setter::<XFS_IOC_FSGROWFSDATA, XfsGrow>::new(wanted) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(folder, request) }?)
}

fn grow_btrfs(folder: BorrowedFd<'_>) -> io::Result<()> {
    let mut name = [0; 4088];
    // The only device of the file system has the number 1.
    name[..5].copy_from_slice(b"1:max");
    // SAFETY: RESIZE reads one `struct btrfs_ioctl_vol_args`, which is what it is given.
    let request = unsafe { Setter::<BTRFS_IOC_RESIZE, BtrfsResize>::new(BtrfsResize { fd: 0, name }) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(folder, request) }?)
}

/// Tells the device of the file system that `folder` lies in which of its blocks are not used; a file behind a loop device has holes there
/// afterwards. Gives the bytes that were told of, be they holes already. Takes time in proportion to the free pieces.
///
/// # Errors
/// `EOPNOTSUPP`: the device cannot; otherwise the kernel's.
pub fn trim(folder: impl AsFd) -> io::Result<u64> {
    let mut range = TrimRange { start: 0, length: u64::MAX, shortest: 0 };
    // SAFETY: FITRIM reads and writes one `struct fstrim_range`.
    let request = unsafe { Updater::<FITRIM, TrimRange>::new(&mut range) };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(folder, request) }?;
    Ok(range.length)
}
