//! Quotas of btrfs: groups that count what their subvolumes take, and limit it.
//!
//! Each subvolume has a group of its own, of level 0 and with the number of its tree. A group of a higher level counts for all groups in it. There are two ways of counting:
//!
//! - *simple* (Linux 6.7): an extent counts for the subvolume that wrote it, as long as anybody has it. Costs next to nothing. Kernels before 6.7 do not mount
//!   such a file system any more, also when quotas are off again. A subvolume that is made in another is put into its groups.
//! - *full*: an extent counts for all that have it, and as exclusive for a group when nobody else has it. Found out by walking back references at each commit, which takes
//!   long where many snapshots share much; a scan of the whole file system comes first.

use super::{Item, MAGIC, Range, item, search};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const QUOTA_CTL: Opcode = opcode::read_write::<Control>(MAGIC, 40);
const QGROUP_ASSIGN: Opcode = opcode::write::<Assign>(MAGIC, 41);
const QGROUP_CREATE: Opcode = opcode::write::<Create>(MAGIC, 42);
/// Its number says that it is read; it is written.
const QGROUP_LIMIT: Opcode = opcode::read::<Limit>(MAGIC, 43);
const QUOTA_RESCAN: Opcode = opcode::write::<Rescan>(MAGIC, 44);
const QUOTA_RESCAN_WAIT: Opcode = opcode::none(MAGIC, 46);
const _: () = assert!(QUOTA_CTL == 0xc010_9428);
const _: () = assert!(QGROUP_ASSIGN == 0x4018_9429);
const _: () = assert!(QGROUP_CREATE == 0x4010_942a);
const _: () = assert!(QGROUP_LIMIT == 0x8030_942b);
const _: () = assert!(QUOTA_RESCAN == 0x4040_942c);

/// The tree of quotas, and the kinds of its items.
const TREE: u64 = 8;
const STATUS: u32 = 240;
const INFO: u32 = 242;
const LIMIT: u32 = 244;
const RELATION: u32 = 246;

const ENABLE: u64 = 1;
const DISABLE: u64 = 2;
const ENABLE_SIMPLE: u64 = 4;

const IS_ON: u64 = 1 << 0;
const IS_SCANNING: u64 = 1 << 1;
const IS_INCONSISTENT: u64 = 1 << 2;
const IS_SIMPLE: u64 = 1 << 3;

const MAX_REFERENCED: u64 = 1 << 0;
const MAX_EXCLUSIVE: u64 = 1 << 1;

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct Control {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct Assign {
    assign: u64,
    member: u64,
    group: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct Create {
    create: u64,
    group: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct Limit {
    group: u64,
    flags: u64,
    referenced: u64,
    exclusive: u64,
    reserved: [u64; 2],
}

const _: () = assert!(size_of::<Limit>() == 48);

/// `struct btrfs_ioctl_quota_rescan_args`.
#[repr(C)]
struct Rescan {
    flags: u64,
    progress: u64,
    reserved: [u64; 6],
}

const _: () = assert!(size_of::<Rescan>() == 64);

/// How quotas count. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For who wrote it.
    Simple,
    /// For all who have it.
    Full,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Simple => "simple",
            Self::Full => "full",
        })
    }
}

/// A quota group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(u64);

impl Group {
    /// The group that a subvolume has for itself.
    pub fn of(tree: u64) -> Self {
        Self::at(0, tree)
    }

    /// The group of a level with this number, of which 48 bits count.
    pub fn at(level: u16, number: u64) -> Self {
        Self(u64::from(level) << 48 | number & ((1 << 48) - 1))
    }

    /// Its level; only groups of level 0 are subvolumes.
    pub fn level(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Its number within the level.
    pub fn number(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

impl fmt::Display for Group {
    /// As `btrfs qgroup show` has it: `0/257`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level(), self.number())
    }
}

/// What a group counts, in bytes on the disk, as of the last commit of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// What its subvolumes have.
    pub referenced: u64,
    /// What nobody else has.
    pub exclusive: u64,
}

/// What a group may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of what its subvolumes have.
    pub referenced: Option<u64>,
    /// Of what nobody else has.
    pub exclusive: Option<u64>,
}

/// How quotas count on the file system that this lies in; `None` while they are off.
///
/// # Errors
/// The kernel's.
pub fn mode(fd: impl AsFd) -> io::Result<Option<Mode>> {
    let flags = flags(fd.as_fd())?;
    let mode = if flags & IS_SIMPLE != 0 { Mode::Simple } else { Mode::Full };
    Ok((flags & IS_ON != 0).then_some(mode))
}

fn flags(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut flags = 0;
    visit(fd, (0, STATUS), (0, STATUS), &mut |item| flags = item.number::<8>(16))?;
    Ok(flags)
}

/// Tells the items of the tree of quotas; there are none while they are off.
fn visit(
    fd: BorrowedFd<'_>,
    from: (u64, u32),
    to: (u64, u32),
    told: &mut dyn FnMut(Item<'_>),
) -> io::Result<()> {
    let found = search(fd, Range { tree: TREE, from, to, since: 0 }, &mut |item| {
        told(item);
        Ok(())
    });
    match found {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        result => result,
    }
}

/// Switches quotas on; nothing happens if they are on, in whichever mode. Full ones count only when [`settle`] has returned.
///
/// # Errors
/// The kernel's; `EINVAL`: it has no simple ones.
pub fn enable(fd: impl AsFd, mode: Mode) -> io::Result<()> {
    control(fd, if mode == Mode::Simple { ENABLE_SIMPLE } else { ENABLE })
}

/// Switches quotas off: all groups and limits are forgotten.
///
/// # Errors
/// The kernel's.
pub fn disable(fd: impl AsFd) -> io::Result<()> {
    control(fd, DISABLE)
}

fn control(fd: impl AsFd, command: u64) -> io::Result<()> {
    let mut control = Control { command, status: 0 };
    // SAFETY: QUOTA_CTL reads and writes one `struct btrfs_ioctl_quota_ctl_args`.
    let request = unsafe { Updater::<QUOTA_CTL, Control>::new(&mut control) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(fd, request) }?)
}

/// Waits until the figures are right: for a scan that is under way, and for one that is begun here if they are not to be trusted.
///
/// # Errors
/// The kernel's.
pub fn settle(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    let flags = flags(fd)?;
    if flags & IS_SIMPLE != 0 || flags & (IS_SCANNING | IS_INCONSISTENT) == 0 {
        return Ok(());
    }
    // SAFETY: QUOTA_RESCAN reads one `struct btrfs_ioctl_quota_rescan_args`.
    let request =
        unsafe { Setter::<QUOTA_RESCAN, Rescan>::new(Rescan { flags: 0, progress: 0, reserved: [0; 6] }) };
    // SAFETY: the request is of the type that its number says.
    match unsafe { ioctl(fd, request) } {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // SAFETY: QUOTA_RESCAN_WAIT takes no argument.
    let request = unsafe { NoArg::<QUOTA_RESCAN_WAIT>::new() };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(fd, request) }?)
}

/// Makes a group. One that is there is fine.
///
/// # Errors
/// The kernel's; `ENOTCONN`: quotas are off.
pub fn create(fd: impl AsFd, group: Group) -> io::Result<()> {
    match make(fd, group, true) {
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

/// Takes a group away; `false` if there is none, and where quotas are off.
///
/// # Errors
/// The kernel's; `EBUSY`: there are groups in it, its subvolume is there, or something of a subvolume that is gone is still in use by others.
pub fn remove(fd: impl AsFd, group: Group) -> io::Result<bool> {
    match make(fd, group, false) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NOTCONN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn make(fd: impl AsFd, group: Group, create: bool) -> rustix::io::Result<()> {
    let create = Create { create: create.into(), group: group.0 };
    // SAFETY: QGROUP_CREATE reads one `struct btrfs_ioctl_qgroup_create_args`.
    let request = unsafe { Setter::<QGROUP_CREATE, Create>::new(create) };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(fd, request) }
}

/// Puts a group into one of a higher level. One that is in it is fine.
///
/// With full quotas the figures are wrong afterwards, until a scan, unless the member shares nothing with others.
///
/// # Errors
/// The kernel's.
pub fn put_into(fd: impl AsFd, member: Group, group: Group) -> io::Result<()> {
    match assign(fd, member, group, true) {
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

/// Takes a group out of one that it is in. One that is not in it is fine.
///
/// # Errors
/// The kernel's.
pub fn take_out_of(fd: impl AsFd, member: Group, group: Group) -> io::Result<()> {
    match assign(fd, member, group, false) {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

fn assign(fd: impl AsFd, member: Group, group: Group, assign: bool) -> rustix::io::Result<()> {
    let assign = Assign { assign: assign.into(), member: member.0, group: group.0 };
    // SAFETY: QGROUP_ASSIGN reads one `struct btrfs_ioctl_qgroup_assign_args`.
    let request = unsafe { Setter::<QGROUP_ASSIGN, Assign>::new(assign) };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(fd, request) }
}

/// Sets both limits of a group; `None` lifts one.
///
/// # Errors
/// The kernel's.
pub fn limit(fd: impl AsFd, group: Group, limits: Limits) -> io::Result<()> {
    // All bits set: no limit.
    let value = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let args = Limit {
        group: group.0,
        flags: MAX_REFERENCED | MAX_EXCLUSIVE,
        referenced: value(limits.referenced),
        exclusive: value(limits.exclusive),
        reserved: [0; 2],
    };
    // SAFETY: QGROUP_LIMIT reads one `struct btrfs_ioctl_qgroup_limit_args`.
    let request = unsafe { Setter::<QGROUP_LIMIT, Limit>::new(args) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(fd, request) }?)
}

/// What a group counts; `None` if there is no such group. Proportional to the number of groups.
///
/// # Errors
/// The kernel's.
pub fn figures(fd: impl AsFd, group: Group) -> io::Result<Option<Figures>> {
    let mut found = None;
    // struct btrfs_qgroup_info_item: generation, referenced, compressed, exclusive, compressed.
    visit(fd.as_fd(), (0, INFO), (0, INFO), &mut |item| {
        if item.offset == group.0 {
            found = Some(Figures { referenced: item.number::<8>(8), exclusive: item.number::<8>(24) });
        }
    })?;
    Ok(found)
}

/// The limits of a group; `None` if there is no such group. Proportional to the number of groups.
///
/// # Errors
/// The kernel's.
pub fn limits(fd: impl AsFd, group: Group) -> io::Result<Option<Limits>> {
    let mut found = None;
    // struct btrfs_qgroup_limit_item: flags, most referenced, most exclusive, two that are reserved.
    visit(fd.as_fd(), (0, LIMIT), (0, LIMIT), &mut |item| {
        if item.offset == group.0 {
            let flags = item.number::<8>(0);
            let limit = |flag: u64, at: u64| (flags & flag != 0).then_some(at);
            found = Some(Limits {
                referenced: limit(MAX_REFERENCED, item.number::<8>(8)),
                exclusive: limit(MAX_EXCLUSIVE, item.number::<8>(16)),
            });
        }
    })?;
    Ok(found)
}

/// All groups. Proportional to their number.
///
/// # Errors
/// The kernel's.
pub fn all(fd: impl AsFd) -> io::Result<Vec<Group>> {
    let mut found = Vec::new();
    visit(fd.as_fd(), (0, INFO), (0, INFO), &mut |item| found.push(Group(item.offset)))?;
    Ok(found)
}

/// The groups that a group is in.
///
/// # Errors
/// The kernel's.
pub fn groups_of(fd: impl AsFd, group: Group) -> io::Result<Vec<Group>> {
    related(fd.as_fd(), group, &|other| other.level() > group.level())
}

/// The groups in a group.
///
/// # Errors
/// The kernel's.
pub fn members(fd: impl AsFd, group: Group) -> io::Result<Vec<Group>> {
    related(fd.as_fd(), group, &|other| other.level() < group.level())
}

/// Relations are written down both ways.
fn related(fd: BorrowedFd<'_>, group: Group, wanted: &dyn Fn(Group) -> bool) -> io::Result<Vec<Group>> {
    let mut found = Vec::new();
    visit(fd, (group.0, RELATION), (group.0, RELATION), &mut |item| {
        let other = Group(item.offset);
        if item.kind == RELATION && wanted(other) {
            found.push(other);
        }
    })?;
    Ok(found)
}

/// Whether there is a tree of this number, be it one that is being deleted in the background.
///
/// # Errors
/// The kernel's.
pub fn tree_exists(fd: impl AsFd, tree: u64) -> io::Result<bool> {
    let mut found = false;
    let range = Range { tree: super::ROOT_TREE, from: (tree, item::ROOT), to: (tree, item::ROOT), since: 0 };
    search(fd, range, &mut |_| {
        found = true;
        Ok(())
    })?;
    Ok(found)
}
