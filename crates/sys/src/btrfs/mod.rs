//! Subvolumes of btrfs, and its trees: ioctls that nothing else has safe calls for.
//!
//! Structures and numbers are those of `include/uapi/linux/btrfs.h` and `btrfs_tree.h`. All of this needs privileges of the host.

pub mod chunks;
pub mod quota;

use rustix::ioctl::{Getter, NoArg, Opcode, Setter, Updater, ioctl, opcode};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

const MAGIC: u8 = 0x94;
const SYNC: Opcode = opcode::none(MAGIC, 8);
const TREE_SEARCH_V2: Opcode = opcode::read_write::<SearchHead>(MAGIC, 17);
const INO_LOOKUP: Opcode = opcode::read_write::<InoLookup>(MAGIC, 18);
const SNAP_CREATE_V2: Opcode = opcode::write::<VolArgs>(MAGIC, 23);
const SUBVOL_CREATE_V2: Opcode = opcode::write::<VolArgs>(MAGIC, 24);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(MAGIC, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(MAGIC, 26);
const GET_SUBVOL_INFO: Opcode = opcode::read::<SubvolInfo>(MAGIC, 60);
const SNAP_DESTROY_V2: Opcode = opcode::write::<VolArgs>(MAGIC, 63);
const _: () = assert!(SNAP_CREATE_V2 == 0x5000_9417);
const _: () = assert!(TREE_SEARCH_V2 == 0xc070_9411);

const SUBVOL_RDONLY: u64 = 1 << 1;

/// The inode number of a subvolume's root.
pub const ROOT_INODE: u64 = 256;
/// The tree in which all subvolumes are listed.
pub const ROOT_TREE: u64 = 1;

/// Key types of items.
pub mod item {
    /// An inode.
    pub const INODE: u32 = 1;
    /// A name of an inode; the offset is the directory.
    pub const INODE_REF: u32 = 12;
    /// Names of an inode that has many.
    pub const INODE_EXTREF: u32 = 13;
    /// A piece of a file.
    pub const EXTENT_DATA: u32 = 108;
    /// Something to be deleted; the offset says what.
    pub const ORPHAN: u32 = 48;
    /// A tree.
    pub const ROOT: u32 = 132;
    /// A subvolume in another; the offset is the inner one.
    pub const ROOT_REF: u32 = 156;
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

const _: () = assert!(size_of::<VolArgs>() == 4096);

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InoLookup {
    tree: u64,
    inode: u64,
    name: [u8; 4080],
}

const _: () = assert!(size_of::<InoLookup>() == 4096);

/// `struct btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
struct SubvolInfo {
    tree: u64,
    name: [u8; 256],
    parent: u64,
    dir: u64,
    generation: u64,
    flags: u64,
    uuids: [[u8; 16]; 3],
    ctransid: u64,
    otransid: u64,
    stransid: u64,
    rtransid: u64,
    times: [[u64; 2]; 4],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<SubvolInfo>() == 504);

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SearchKey {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    reserved: [u64; 4],
}

/// `struct btrfs_ioctl_search_args_v2` without its buffer.
#[repr(C)]
struct SearchHead {
    key: SearchKey,
    size: u64,
}

const _: () = assert!(size_of::<SearchHead>() == 112);

/// Bytes of items that one call returns at most.
const BUFFER: usize = 64 << 10;

#[repr(C)]
struct Search {
    head: SearchHead,
    buffer: [u8; BUFFER],
}

fn vol_args(fd: i64, name: &OsStr) -> io::Result<VolArgs> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 255 || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut args = VolArgs { fd, transid: 0, flags: 0, unused: [0; 4], name: [0; 4040] };
    args.name[..bytes.len()].copy_from_slice(bytes);
    Ok(args)
}

/// Makes an empty subvolume `name` in the folder.
///
/// # Errors
/// The kernel's: not btrfs (`ENOTTY`), it exists.
pub fn create(folder: impl AsFd, name: &OsStr) -> io::Result<()> {
    let args = vol_args(0, name)?;
    // SAFETY: SUBVOL_CREATE_V2 reads one `struct btrfs_ioctl_vol_args_v2`, which is what it is given.
    let request = unsafe { Setter::<SUBVOL_CREATE_V2, VolArgs>::new(args) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(folder, request) }?)
}

/// Makes a writable snapshot `name`, in the folder, of the subvolume whose root `source` is. Subvolumes inside of it are empty folders in the snapshot.
///
/// # Errors
/// The kernel's.
pub fn snapshot(source: impl AsFd, folder: impl AsFd, name: &OsStr) -> io::Result<()> {
    let source = source.as_fd();
    let args = vol_args(i64::from(source.as_raw_fd()), name)?;
    // SAFETY: SNAP_CREATE_V2 reads one `struct btrfs_ioctl_vol_args_v2`; the descriptor in it is borrowed and open.
    let request = unsafe { Setter::<SNAP_CREATE_V2, VolArgs>::new(args) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(folder, request) }?)
}

/// Deletes the subvolume `name` of the folder, whatever is in it; the space comes back in the background. It must have no subvolume inside.
///
/// # Errors
/// The kernel's: `ENOTEMPTY` with subvolumes inside, `ENOENT`.
pub fn destroy(folder: impl AsFd, name: &OsStr) -> io::Result<()> {
    let args = vol_args(0, name)?;
    // SAFETY: SNAP_DESTROY_V2 reads one `struct btrfs_ioctl_vol_args_v2`, which is what it is given.
    let request = unsafe { Setter::<SNAP_DESTROY_V2, VolArgs>::new(args) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(folder, request) }?)
}

/// Whether the subvolume can only be read.
///
/// # Errors
/// The kernel's; `EINVAL` if it is no subvolume's root.
pub fn is_read_only(subvolume: impl AsFd) -> io::Result<bool> {
    Ok(flags(subvolume)? & SUBVOL_RDONLY != 0)
}

fn flags(subvolume: impl AsFd) -> io::Result<u64> {
    // SAFETY: SUBVOL_GETFLAGS writes one 64-bit number.
    let request = unsafe { Getter::<SUBVOL_GETFLAGS, u64>::new() };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(subvolume, request) }?)
}

/// Makes the subvolume read-only, or writable.
///
/// # Errors
/// The kernel's.
pub fn set_read_only(subvolume: impl AsFd, read_only: bool) -> io::Result<()> {
    let now = flags(&subvolume)?;
    let wanted = if read_only { now | SUBVOL_RDONLY } else { now & !SUBVOL_RDONLY };
    if wanted == now {
        return Ok(());
    }
    // SAFETY: SUBVOL_SETFLAGS reads one 64-bit number.
    let request = unsafe { Setter::<SUBVOL_SETFLAGS, u64>::new(wanted) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(subvolume, request) }?)
}

/// What a subvolume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subvolume {
    /// The number of its tree.
    pub tree: u64,
    /// The generation in which it was made.
    pub made: u64,
    /// The generation of its last change that is on the disk.
    pub generation: u64,
}

/// What the subvolume is whose root, or a folder in it, this is.
///
/// # Errors
/// The kernel's.
pub fn info(subvolume: impl AsFd) -> io::Result<Subvolume> {
    // SAFETY: GET_SUBVOL_INFO writes one `struct btrfs_ioctl_get_subvol_info_args`, all of whose bits are numbers.
    let request = unsafe { Getter::<GET_SUBVOL_INFO, SubvolInfo>::new() };
    // SAFETY: the request is of the type that its number says.
    let info = unsafe { ioctl(subvolume, request) }?;
    Ok(Subvolume { tree: info.tree, made: info.otransid, generation: info.generation })
}

/// Brings the whole file system to the disk, so that its trees have all that was written.
///
/// # Errors
/// The kernel's: what a write reports late is reported here.
pub fn sync(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: SYNC takes no argument.
    let request = unsafe { NoArg::<SYNC>::new() };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(fd, request) }?)
}

/// Whether the file system is still deleting subvolumes in the background. Says nothing of those that were destroyed since it was brought to the disk last.
///
/// # Errors
/// The kernel's.
pub fn is_deleting(fd: impl AsFd) -> io::Result<bool> {
    /// What all orphans belong to.
    const ORPHANS: u64 = 0_u64.wrapping_sub(5);
    let mut found = false;
    let range =
        Range { tree: ROOT_TREE, from: (ORPHANS, item::ORPHAN), to: (ORPHANS, item::ORPHAN), since: 0 };
    search(fd, range, &mut |_| {
        found = true;
        Ok(())
    })?;
    Ok(found)
}

/// The path of a folder's inode within its subvolume, which `inside` lies in; empty for the root.
///
/// # Errors
/// The kernel's: `ENOENT`.
pub fn folder_of(inside: impl AsFd, tree: u64, inode: u64) -> io::Result<OsString> {
    if inode == ROOT_INODE {
        return Ok(OsString::new());
    }
    let mut args = InoLookup { tree, inode, name: [0; 4080] };
    // SAFETY: INO_LOOKUP reads and writes one `struct btrfs_ioctl_ino_lookup_args`.
    let request = unsafe { Updater::<INO_LOOKUP, InoLookup>::new(&mut args) };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(inside, request) }?;
    let length = args.name.iter().position(|byte| *byte == 0).unwrap_or(0);
    let path = args.name.get(..length).unwrap_or_default();
    Ok(OsString::from_vec(path.strip_suffix(b"/").unwrap_or(path).to_vec()))
}

/// One item of a tree.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// What it belongs to: an inode, a subvolume.
    pub object: u64,
    /// One of [`item`].
    pub kind: u32,
    /// The third part of its key.
    pub offset: u64,
    /// Its content, little endian.
    pub data: &'a [u8],
}

impl Item<'_> {
    /// The number of `SIZE` bytes at a place; 0 beyond the end.
    pub fn number<const SIZE: usize>(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        if let (Some(found), Some(room)) = (self.data.get(at..at + SIZE), bytes.get_mut(..SIZE)) {
            room.copy_from_slice(found);
        }
        u64::from_le_bytes(bytes)
    }
}

/// Which items of a tree are wanted: all whose keys lie between two, in the order of (object, kind, offset).
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The tree; 0 for that of the subvolume that is asked.
    pub tree: u64,
    /// From this object and kind.
    pub from: (u64, u32),
    /// To this object and kind.
    pub to: (u64, u32),
    /// Only from parts of the tree that were written in this generation or later; items that are older may come along.
    pub since: u64,
}

/// Calls `visit` for each item of the range. Proportional to the parts of the tree that it is in.
///
/// # Errors
/// The kernel's; what `visit` returns.
pub fn search(
    fd: impl AsFd,
    range: Range,
    visit: &mut dyn FnMut(Item<'_>) -> io::Result<()>,
) -> io::Result<()> {
    const HEADER: usize = 32;
    let fd = fd.as_fd();
    let mut next = (range.from.0, range.from.1, 0_u64);
    let mut search = Box::new(Search {
        head: SearchHead {
            key: SearchKey {
                tree: range.tree,
                min_object: 0,
                max_object: range.to.0,
                min_offset: 0,
                max_offset: u64::MAX,
                min_transid: range.since,
                max_transid: u64::MAX,
                min_type: 0,
                max_type: range.to.1,
                items: 0,
                unused: 0,
                reserved: [0; 4],
            },
            size: BUFFER as u64,
        },
        buffer: [0; BUFFER],
    });
    loop {
        let key = &mut search.head.key;
        (key.min_object, key.min_type, key.min_offset) = next;
        key.items = u32::MAX;
        search.head.size = BUFFER as u64;
        // SAFETY: TREE_SEARCH_V2 reads and writes one `struct btrfs_ioctl_search_args_v2`, which is followed by a buffer of the size that it says.
        let request = unsafe { Updater::<TREE_SEARCH_V2, Search>::new(&mut search) };
        // SAFETY: the request is of the type that its number says, with its buffer.
        unsafe { ioctl(fd, request) }?;
        let found = search.head.key.items;
        let mut at = 0;
        for _ in 0..found {
            let header = Item {
                object: 0,
                kind: 0,
                offset: 0,
                data: search.buffer.get(at..at + HEADER).unwrap_or_default(),
            };
            let (object, offset) = (header.number::<8>(8), header.number::<8>(16));
            let (kind, length) = (header.number::<4>(24) as u32, header.number::<4>(28) as usize);
            let data = search.buffer.get(at + HEADER..at + HEADER + length).unwrap_or_default();
            visit(Item { object, kind, offset, data })?;
            at += HEADER + length;
            next = (object, kind, offset);
        }
        if found == 0 {
            return Ok(());
        }
        // The next key after the last one.
        next = match next {
            (object, kind, offset) if offset < u64::MAX => (object, kind, offset + 1),
            (object, kind, _) if kind < 255 => (object, kind + 1, 0),
            (object, _, _) if object < u64::MAX => (object + 1, 0, 0),
            _ => return Ok(()),
        };
        if (next.0, next.1) > range.to {
            return Ok(());
        }
    }
}
