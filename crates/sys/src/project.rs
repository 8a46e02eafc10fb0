//! Project quotas: numbers that directories hand down to what is made in them, and what the file system counts, and limits, for each number.
//!
//! Sources: `ioctl_fssetxattr`(2), quotactl(2), the kernel's `include/uapi/linux/{fs,quota,dqblk_xfs}.h`. Linux 5.14.

use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// struct fsxattr.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

const FS_IOC_FSGETXATTR: Opcode = opcode::read::<Attributes>(b'X', 31);
const FS_IOC_FSSETXATTR: Opcode = opcode::write::<Attributes>(b'X', 32);
const _: () = assert!(FS_IOC_FSGETXATTR == 0x801c_581f);
const _: () = assert!(FS_IOC_FSSETXATTR == 0x401c_5820);
const INHERIT: u32 = 0x200;

const OF_PROJECTS: libc::c_int = 2;
const GET: libc::c_int = 0x80_0007;
const SET: libc::c_int = 0x80_0008;
/// `Q_XGETQSTATV`.
const STATE: libc::c_int = (b'X' as libc::c_int) << 8 | 8;
/// struct `fs_quota_statv`: larger than it is, its version at 0 and its flags at 2.
const STATE_BYTES: usize = 512;
const STATE_VERSION: u8 = 1;
const ENFORCED: u16 = 1 << 5;
const BLOCK_LIMITS: u32 = 1;
/// Limits are told in these.
const UNIT: u64 = 1024;

/// What a number has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Most bytes.
    pub most: Option<u64>,
    /// Bytes that are taken.
    pub taken: u64,
}

fn attributes(dir: impl AsFd) -> rustix::io::Result<Attributes> {
    // SAFETY: FS_IOC_FSGETXATTR writes a struct fsxattr, whose size is in its number.
    let request = unsafe { Getter::<FS_IOC_FSGETXATTR, Attributes>::new() };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(dir, request) }
}

/// The number that a directory hands down, if it hands down one.
///
/// # Errors
/// The file system's. One that has no such numbers has none here either.
pub fn number(dir: impl AsFd) -> io::Result<Option<u32>> {
    match attributes(dir) {
        Ok(found) => Ok((found.flags & INHERIT != 0 && found.project != 0).then_some(found.project)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives an empty directory a number, which all that is made in it gets.
///
/// # Errors
/// `ENOTTY`, `EOPNOTSUPP`: the file system has no such numbers; not privileged.
pub fn assign(dir: impl AsFd, number: u32) -> io::Result<()> {
    let mut wanted = attributes(&dir)?;
    wanted.flags |= INHERIT;
    wanted.project = number;
    // SAFETY: FS_IOC_FSSETXATTR reads a struct fsxattr, whose size is in its number.
    let request = unsafe { Setter::<FS_IOC_FSSETXATTR, Attributes>::new(wanted) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(dir, request) }?)
}

/// Whether the file system counts for numbers and keeps their limits: it was mounted so.
///
/// # Errors
/// Not privileged; the file system's.
pub fn is_enforced(on: impl AsFd) -> io::Result<bool> {
    let mut state = [0_u8; STATE_BYTES];
    state[0] = STATE_VERSION;
    match call(on, STATE, 0, &mut state) {
        Ok(()) => Ok(u16::from_ne_bytes([state[2], state[3]]) & ENFORCED != 0),
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::SRCH | Errno::INVAL | Errno::NOTTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What a number takes and may take.
///
/// # Errors
/// Quotas are off; not privileged.
pub fn account(on: impl AsFd, number: u32) -> io::Result<Account> {
    let mut block = empty();
    match call(on, GET, number, &mut block) {
        Ok(()) => {}
        // Nobody has ever had this number.
        Err(Errno::NOENT) => return Ok(Account::default()),
        Err(error) => return Err(error.into()),
    }
    let most = (block.dqb_bhardlimit > 0).then(|| block.dqb_bhardlimit.saturating_mul(UNIT));
    Ok(Account { most, taken: block.dqb_curspace })
}

/// Sets how many bytes a number may take, rounded up to a kilobyte; `None`: as many as there are.
///
/// # Errors
/// As [`account`]'s.
pub fn limit(on: impl AsFd, number: u32, bytes: Option<u64>) -> io::Result<()> {
    let mut block = empty();
    block.dqb_bhardlimit = bytes.map_or(0, |bytes| bytes.div_ceil(UNIT).max(1));
    block.dqb_valid = BLOCK_LIMITS;
    Ok(call(on, SET, number, &mut block)?)
}

fn empty() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

fn call<T>(on: impl AsFd, command: libc::c_int, number: u32, argument: &mut T) -> rustix::io::Result<()> {
    let command = command << 8 | OF_PROJECTS;
    let fd = on.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes at most what the command's structure has, which `argument` is or is larger than; it is borrowed for the call.
    let result =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, fd, command, number, std::ptr::from_mut(argument)) };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
