//! Chunks: the pieces of its devices that a btrfs has set aside for data or for metadata.
//!
//! What is set aside for the one cannot be used for the other. A file system whose devices are all set aside says "no space left" when one kind runs out, however much of
//! the other is free. A balance moves what is in chunks that are used little into others of the same kind, and sets the devices free that they had.

use super::MAGIC;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const SPACE_INFO: Opcode = opcode::read_write::<[u64; 2]>(MAGIC, 20);
const DEV_INFO: Opcode = opcode::read_write::<DevInfo>(MAGIC, 30);
const FS_INFO: Opcode = opcode::read::<FsInfo>(MAGIC, 31);
const BALANCE_V2: Opcode = opcode::read_write::<Balance>(MAGIC, 32);
const _: () = assert!(SPACE_INFO == 0xc010_9414);
const _: () = assert!(DEV_INFO == 0xd000_941e);
const _: () = assert!(FS_INFO == 0x8400_941f);
const _: () = assert!(BALANCE_V2 == 0xc400_9420);

const DATA: u64 = 1 << 0;
const METADATA: u64 = 1 << 2;
const RESERVE: u64 = 1 << 49;
/// More kinds and profiles than a file system has at once.
const SLOTS: usize = 32;

/// `struct btrfs_ioctl_space_info`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Space {
    flags: u64,
    total: u64,
    used: u64,
}

/// `struct btrfs_ioctl_space_args` with room for the answer.
#[repr(C)]
struct Spaces {
    slots: u64,
    found: u64,
    spaces: [Space; SLOTS],
}

const _: () = assert!(std::mem::offset_of!(Spaces, spaces) == 16 && size_of::<Space>() == 24);

/// `struct btrfs_ioctl_dev_info_args`.
#[repr(C)]
struct DevInfo {
    device: u64,
    uuid: [u8; 16],
    used: u64,
    total: u64,
    unused: [u64; 379],
    path: [u8; 1024],
}

const _: () = assert!(size_of::<DevInfo>() == 4096);

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FsInfo {
    last_device: u64,
    devices: u64,
    uuid: [u8; 16],
    node_size: u32,
    rest: [u8; 988],
}

const _: () = assert!(size_of::<FsInfo>() == 1024);

/// `struct btrfs_balance_args`.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Filter {
    profiles: u64,
    usage: u64,
    places: [u64; 6],
    flags: u64,
    limit: u64,
    stripes: [u32; 2],
    unused: [u64; 6],
}

const _: () = assert!(size_of::<Filter>() == 136);
const _: () = assert!(std::mem::offset_of!(Filter, flags) == 64);

const NO_FILTER: Filter =
    Filter { profiles: 0, usage: 0, places: [0; 6], flags: 0, limit: 0, stripes: [0; 2], unused: [0; 6] };
const BY_USAGE: u64 = 1 << 1;
const BY_LIMIT: u64 = 1 << 5;

/// `struct btrfs_ioctl_balance_args`.
#[repr(C)]
struct Balance {
    flags: u64,
    state: u64,
    data: Filter,
    metadata: Filter,
    system: Filter,
    expected: u64,
    considered: u64,
    completed: u64,
    unused: [u64; 72],
}

const _: () = assert!(size_of::<Balance>() == 1024);

/// What is set aside for one kind, in bytes as they are used, whatever the number of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// In its chunks.
    pub total: u64,
    /// Of these, in use.
    pub used: u64,
}

impl Share {
    /// What its chunks have left.
    pub fn free(self) -> u64 {
        self.total.saturating_sub(self.used)
    }
}

/// How the devices of a file system are set aside, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allocation {
    /// All devices.
    pub size: u64,
    /// Of these, set aside for nothing yet.
    pub unallocated: u64,
    /// Chunks for files' contents.
    pub data: Share,
    /// Chunks for everything else. What the file system keeps in reserve for itself counts as used.
    pub metadata: Share,
}

/// How the devices of the file system that this lies in are set aside. Costs a few ioctls that read no disk.
///
/// # Errors
/// The kernel's: not btrfs (`ENOTTY`).
pub fn allocation(fd: impl AsFd) -> io::Result<Allocation> {
    let fd = fd.as_fd();
    let mut allocation = Allocation::default();
    for space in spaces(fd)? {
        let Space { flags, total, used } = space;
        if flags & RESERVE != 0 {
            // It lies in the chunks for metadata.
            allocation.metadata.used += total;
            continue;
        }
        // In mixed chunks both are one.
        for (kind, share) in [(DATA, &mut allocation.data), (METADATA, &mut allocation.metadata)] {
            if flags & kind != 0 {
                share.total += total;
                share.used += used;
            }
        }
    }
    // SAFETY: FS_INFO writes one `struct btrfs_ioctl_fs_info_args`, all of whose bits are numbers.
    let request = unsafe { Getter::<FS_INFO, FsInfo>::new() };
    // SAFETY: the request is of the type that its number says.
    let devices = unsafe { ioctl(fd, request) }?;
    for device in 1..=devices.last_device {
        let mut info =
            DevInfo { device, uuid: [0; 16], used: 0, total: 0, unused: [0; 379], path: [0; 1024] };
        // SAFETY: DEV_INFO reads and writes one `struct btrfs_ioctl_dev_info_args`.
        let request = unsafe { Updater::<DEV_INFO, DevInfo>::new(&mut info) };
        // SAFETY: the request is of the type that its number says.
        match unsafe { ioctl(fd, request) } {
            Ok(()) => {}
            // Numbers of devices that were taken out are not used again.
            Err(Errno::NODEV) => continue,
            Err(error) => return Err(error.into()),
        }
        allocation.size += info.total;
        allocation.unallocated += info.total.saturating_sub(info.used);
    }
    Ok(allocation)
}

fn spaces(fd: BorrowedFd<'_>) -> io::Result<Vec<Space>> {
    let none = Space { flags: 0, total: 0, used: 0 };
    let mut spaces = Spaces { slots: SLOTS as u64, found: 0, spaces: [none; SLOTS] };
    // SAFETY: SPACE_INFO reads and writes one `struct btrfs_ioctl_space_args`, which is followed by as many slots as it says.
    let request = unsafe { Updater::<SPACE_INFO, Spaces>::new(&mut spaces) };
    // SAFETY: the request is of the type that its number says, with its slots.
    unsafe { ioctl(fd, request) }?;
    Ok(spaces.spaces.into_iter().take(spaces.found as usize).collect())
}

/// Whose chunks a balance moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// Those for files' contents.
    Data,
    /// Those for everything else.
    Metadata,
}

/// Moves what is in chunks of which less than `percent` is used, at most `most` of them, and gives the number that were moved. Takes as long as copying that
/// data does; other work goes on meanwhile.
///
/// # Errors
/// The kernel's: `EINPROGRESS`, another balance is at work or paused; `ENOSPC`, there is no room even to move; `ECANCELED`.
pub fn balance(fd: impl AsFd, chunks: Chunks, percent: u8, most: u32) -> io::Result<u64> {
    // Empty ones only, if the percentage is 0. The limit is a number of 64 bits or a pair of 32, by its flag.
    let filter =
        Filter { usage: percent.into(), limit: most.into(), flags: BY_USAGE | BY_LIMIT, ..NO_FILTER };
    let (flags, data, metadata) = match chunks {
        Chunks::Data => (1 << 0, filter, NO_FILTER),
        Chunks::Metadata => (1 << 2, NO_FILTER, filter),
    };
    let mut balance = Balance {
        flags,
        state: 0,
        data,
        metadata,
        system: NO_FILTER,
        expected: 0,
        considered: 0,
        completed: 0,
        unused: [0; 72],
    };
    // SAFETY: BALANCE_V2 reads and writes one `struct btrfs_ioctl_balance_args`.
    let request = unsafe { Updater::<BALANCE_V2, Balance>::new(&mut balance) };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(fd, request) }?;
    Ok(balance.completed)
}
