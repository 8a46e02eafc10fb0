//! Size limits of layers, by btrfs' quotas.
//!
//! Quotas cost every commit of the file system something, so they are never switched on unasked: the first layer that is made with a size switches them on, because whoever asks for
//! a limit asks for what keeps it. If they are on already, they are taken as they are. Otherwise they become *simple* ones where the kernel has these (Linux 6.7): full ones follow
//! back references at each commit, which takes minutes where hundreds of snapshots share an image. The price of simple ones is that older kernels do not mount the file system any
//! more; who minds that says `btrfs quota enable` beforehand.
//!
//! | | simple | full |
//! |---|---|---|
//! | the limit is on | a group of level 30316 (`vl`) with the number of the layer's tree, which its copies are put into too | the layer's own group |
//! | it limits | what the layer, its copies (save points) and subvolumes made inside have written | what the layer refers to: its parent's tree and `size` more |
//! | a subvolume that a container makes inside | counts | is not counted by this kernel's full quotas |
//!
//! # Groups that are left behind
//!
//! A subvolume's own group can go when the subvolume is deleted to its last block, which the kernel does in the background (since Linux 6.11 it takes the group away then), and the
//! transaction that did it has ended. So a purge waits for both, and takes away what is left: the groups of the subvolumes that it deleted, by their numbers, which are never used twice; and groups of level 30316 that nothing is in any more.
//! With simple quotas the group of a deleted subvolume stays as long as others have something that it wrote; a later purge finds it in the group of level 30316.
//!
//! Changes of groups are asked for through the home: each takes a little room first, and a tree that is full up to its limit has none.

use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use vellum_sys::btrfs;
use vellum_sys::btrfs::quota::{self, Group, Limits, Mode};

/// The level of the groups that are this driver's.
const LEVEL: u16 = u16::from_be_bytes(*b"vl");
/// How long a purge waits for the kernel. A file of the subvolume that is still open somewhere can hold it up for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a layer's limit is, and how much of it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    /// In bytes, with full quotas including the parent's tree.
    pub(crate) most: u64,
    /// As of the last commit of the file system.
    pub(crate) taken: u64,
}

/// Limits what may be written to the tree, to so many bytes. Switches quotas on if they are off.
pub(crate) fn impose(home: BorrowedFd<'_>, tree: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let mode = match quota::mode(tree)? {
        Some(mode) => mode,
        None => switch_on(home)?,
    };
    let number = btrfs::info(tree)?.tree;
    let own = Group::of(number);
    match mode {
        Mode::Simple => {
            let group = Group::at(LEVEL, number);
            quota::create(home, group)?;
            quota::limit(home, group, Limits { exclusive: Some(bytes), referenced: None })?;
            quota::put_into(home, own, group)
        }
        Mode::Full => {
            btrfs::sync(tree)?;
            quota::settle(tree)?;
            // A new layer refers to what its parent does.
            let has = quota::figures(tree, own)?.unwrap_or_default().referenced;
            let referenced = Some(has.saturating_add(bytes));
            quota::limit(home, own, Limits { referenced, exclusive: None })
        }
    }
}

fn switch_on(home: BorrowedFd<'_>) -> io::Result<Mode> {
    match quota::enable(home, Mode::Simple) {
        // A kernel that does not know them.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            quota::enable(home, Mode::Full)?;
        }
        result => result?,
    }
    // Somebody else may have switched the other ones on at this moment.
    let off = || io::Error::other("quotas were switched on and are off");
    quota::mode(home)?.ok_or_else(off)
}

/// Has a copy limited as the tree is that it is of: with simple quotas both together.
pub(crate) fn share(home: BorrowedFd<'_>, tree: BorrowedFd<'_>, copy: BorrowedFd<'_>) -> io::Result<()> {
    let (own, other) = (Group::of(btrfs::info(tree)?.tree), Group::of(btrfs::info(copy)?.tree));
    match quota::mode(tree)? {
        None => Ok(()),
        Some(Mode::Simple) => {
            ours(tree, own)?.into_iter().try_for_each(|group| quota::put_into(home, other, group))
        }
        Some(Mode::Full) => {
            let limits = quota::limits(tree, own)?.unwrap_or_default();
            quota::limit(home, other, limits)
        }
    }
}

/// Lifts the tree's limit.
pub(crate) fn lift(home: BorrowedFd<'_>, tree: BorrowedFd<'_>) -> io::Result<()> {
    let own = Group::of(btrfs::info(tree)?.tree);
    match quota::mode(tree)? {
        None => Ok(()),
        Some(Mode::Simple) => ours(tree, own)?.into_iter().try_for_each(|group| {
            quota::take_out_of(home, own, group)?;
            remove_unused(home, group).map(drop)
        }),
        Some(Mode::Full) => quota::limit(home, own, Limits::default()),
    }
}

/// Room above the limit for what a deletion writes.
const MARGIN: u64 = 64 << 20;

/// A limit that was raised so that what is over it can be deleted. Names the limit to go back to.
#[derive(Debug)]
pub(crate) struct Loosened(Vec<(Group, Limits)>);

/// Raises the limit of a tree that is to be deleted with the subvolumes inside: each of these takes a little room first. `size` is what the layer was made with; a
/// deletion that was killed may have left the limit raised.
pub(crate) fn loosen(home: BorrowedFd<'_>, tree: BorrowedFd<'_>, size: u64) -> io::Result<Loosened> {
    let own = Group::of(btrfs::info(tree)?.tree);
    let mut loosened = Vec::new();
    match quota::mode(tree)? {
        None => {}
        Some(Mode::Full) => quota::limit(home, own, Limits::default())?,
        // Its copies stay limited.
        Some(Mode::Simple) => {
            for group in ours(tree, own)? {
                let raised = Limits { exclusive: Some(size.saturating_add(MARGIN)), referenced: None };
                quota::limit(home, group, raised)?;
                loosened.push((group, Limits { exclusive: Some(size), referenced: None }));
            }
        }
    }
    Ok(Loosened(loosened))
}

/// Sets limits that were raised to what they were.
pub(crate) fn tighten(home: BorrowedFd<'_>, loosened: &Loosened) -> io::Result<()> {
    loosened.0.iter().try_for_each(|(group, limits)| quota::limit(home, *group, *limits))
}

/// The limit that is in force for the tree, if there is one.
pub(crate) fn of(tree: BorrowedFd<'_>) -> io::Result<Option<Limited>> {
    let own = Group::of(btrfs::info(tree)?.tree);
    let group = ours(tree, own)?.first().copied().unwrap_or(own);
    let limits = quota::limits(tree, group)?.unwrap_or_default();
    let figures = quota::figures(tree, group)?.unwrap_or_default();
    let limited = |most: Option<u64>, taken| most.map(|most| Limited { most, taken });
    Ok(limited(limits.exclusive, figures.exclusive).or(limited(limits.referenced, figures.referenced)))
}

/// The groups of this driver that the group is in.
fn ours(fd: BorrowedFd<'_>, group: Group) -> io::Result<Vec<Group>> {
    let mut groups = quota::groups_of(fd, group)?;
    groups.retain(|group| group.level() == LEVEL);
    Ok(groups)
}

/// The numbers of the tree, and of those of subvolumes inside, if quotas keep groups for them.
pub(crate) fn counted(tree: BorrowedFd<'_>, inside: &[OwnedFd]) -> io::Result<Vec<u64>> {
    if quota::mode(tree)?.is_none() {
        return Ok(Vec::new());
    }
    let mut numbers = vec![btrfs::info(tree)?.tree];
    for root in inside {
        numbers.push(btrfs::info(root)?.tree);
    }
    Ok(numbers)
}

/// Takes away the groups of trees that were deleted just now, and those of this driver that nothing is in any more.
pub(crate) fn forget(home: BorrowedFd<'_>, trees: &[u64]) -> io::Result<()> {
    if trees.is_empty() {
        return Ok(());
    }
    // Also wakes the kernel's cleaner.
    btrfs::sync(home)?;
    let begin = Instant::now();
    for tree in trees {
        while quota::tree_exists(home, *tree)? && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut used = Vec::new();
    for group in trees.iter().copied().map(Group::of) {
        if !remove_unused(home, group)? {
            used.push(group);
        }
    }
    // A tree is gone before its last blocks are, which count until the end of the transaction.
    if !used.is_empty() {
        btrfs::sync(home)?;
        for group in used {
            remove_unused(home, group)?;
        }
    }
    for group in quota::all(home)?.into_iter().filter(|group| group.level() == LEVEL) {
        for member in quota::members(home, group)? {
            if member.level() == 0 && !quota::tree_exists(home, member.number())? {
                remove_unused(home, member)?;
            }
        }
        // One that is being made has its tree already, and no member yet.
        if !quota::tree_exists(home, group.number())? {
            remove_unused(home, group)?;
        }
    }
    Ok(())
}

/// Takes a group away, unless something is counted in it: the kernel refuses that. Says whether it is gone.
fn remove_unused(fd: impl AsFd, group: Group) -> io::Result<bool> {
    match quota::remove(fd, group) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        result => result.map(|_| true),
    }
}

/// How quotas stand, for people.
pub(crate) fn status(home: BorrowedFd<'_>) -> io::Result<String> {
    Ok(match quota::mode(home)? {
        None => "off; the first layer with a size limit switches them on".to_owned(),
        Some(mode) => mode.to_string(),
    })
}
