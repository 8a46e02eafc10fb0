//! Room that the file system holds and does not use.
//!
//! btrfs sets its devices aside in chunks, for data or for metadata. When all is set aside and the one kind runs out, it says "no space left" with gigabytes free in chunks of the
//! other kind; containers that come and go bring it there. The cure is a balance of chunks that are used little. It moves at most a few, lowest first, until there is room for one
//! new chunk of the kind that lacks:
//!
//! 1. Chunks of data: the empty ones, then one at a time of those that are used below 10, 30, 60 and 90 percent.
//! 2. If that was not enough, chunks of metadata in the same way.
//!
//! A balance itself takes 4 MiB of metadata for a start, which is just what there is none of when metadata has run out. So the driver keeps a reserve of its own: the file `.reserve`
//! in its home, which has nothing but attributes, of 6 MiB in all, each in a node of the metadata. It is removed before the balance and made again after it.
//!
//! **Lock rule**: the home's folder is locked alone meanwhile (flock), so that of many who meet the full disk at once one balances, and the others find that it was done.

use rustix::fs::{AtFlags, FlockOperation, XattrFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use vellum_driver::{Error, ErrorKind, Result};
use vellum_sys::btrfs;
use vellum_sys::btrfs::chunks::{self, Allocation, Chunks, Share};
use vellum_sys::file::open_folder;

/// Chunks used below these percentages are moved, in this order.
const STEPS: [u8; 5] = [0, 10, 30, 60, 90];
/// Chunks that are moved of one kind at most: no more than a few seconds' work.
const MOST_MOVED: u32 = 12;
/// An empty chunk costs nothing to give back.
const MOST_EMPTY: u32 = 1 << 20;

const RESERVE: &str = ".reserve";
/// Each takes a node of the smallest size that is in use by itself (16 KiB), in which a header and the name lie, too.
const PIECES: usize = 384;
const PIECE: usize = 15_000;

/// What a look at the chunks, and a balance where that said so, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is room to set aside, or no chunk to give back: this is not what is wrong.
    NotThis,
    /// So many bytes were given back, by this process or by another one just now.
    Freed(u64),
    /// No chunk could be given back.
    Stuck,
}

/// What a chunk takes: a tenth of a small file system, a gigabyte of a big one.
fn piece(allocation: &Allocation) -> u64 {
    (allocation.size / 10).clamp(1, 1 << 30)
}

/// Whether chunks of one kind hold what the other cannot get.
fn is_curable(now: &Allocation) -> bool {
    let piece = piece(now);
    now.unallocated < piece && (now.data.free() >= piece || now.metadata.free() >= piece)
}

/// Whether that is about to be felt: the one kind has next to nothing left.
fn is_short(now: &Allocation) -> bool {
    let little = |share: Share| share.free() < (piece(now) / 4).max(share.total / 16);
    is_curable(now) && (little(now.data) || little(now.metadata))
}

/// Runs the balance if chunks hold what is lacking. With `only_if_short`, only if it lacks already or nearly.
///
/// # Errors
/// The kernel's; that there is no room even for the balance is no error.
pub(crate) fn make(home: BorrowedFd<'_>, only_if_short: bool) -> io::Result<Outcome> {
    let needed = |now: &Allocation| if only_if_short { is_short(now) } else { is_curable(now) };
    let before = chunks::allocation(home)?;
    if !needed(&before) {
        return Ok(Outcome::NotThis);
    }
    // A lock belongs to who opened the file: one of the driver's own would be shared by all threads.
    let lock = open_folder(home, ".")?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let mut now = chunks::allocation(home)?;
    let wanted = piece(&now);
    if needed(&now) {
        let _ = rustix::fs::unlinkat(home, RESERVE, AtFlags::empty());
        // What was removed can be used again after the transaction in which it was.
        btrfs::sync(home)?;
    }
    for kind in [Chunks::Data, Chunks::Metadata] {
        if needed(&now) && share(&now, kind).free() >= wanted {
            free_chunks(home, kind, wanted)?;
            now = chunks::allocation(home)?;
        }
    }
    let freed = now.unallocated.saturating_sub(before.unallocated);
    keep_reserve(home);
    Ok(if freed > 0 { Outcome::Freed(freed) } else { Outcome::Stuck })
}

/// How long a clean-up waits for the kernel. A file of a subvolume that is still open somewhere can hold it up for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the kernel has deleted what subvolumes that were destroyed took.
pub(crate) fn await_deletions(home: BorrowedFd<'_>) -> io::Result<()> {
    // Also wakes the kernel's cleaner.
    btrfs::sync(home)?;
    let begin = Instant::now();
    while btrfs::is_deleting(home)? && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
    // What was deleted is free after the transaction in which it was.
    btrfs::sync(home)
}

/// Makes the reserve if there is none. Where there is no room for it, it is made another time.
pub(crate) fn keep_reserve(home: BorrowedFd<'_>) {
    let Ok(file) = vellum_sys::file::create(home, RESERVE, 0o600) else { return };
    let piece = [0; PIECE];
    let made = (0..PIECES).try_for_each(|n| {
        rustix::fs::fsetxattr(&file, format!("trusted.vellum.{n}"), &piece, XattrFlags::empty())
    });
    if made.is_err() {
        let _ = rustix::fs::unlinkat(home, RESERVE, AtFlags::empty());
    }
}

fn share(allocation: &Allocation, kind: Chunks) -> Share {
    match kind {
        Chunks::Data => allocation.data,
        Chunks::Metadata => allocation.metadata,
    }
}

/// Balances until `wanted` bytes are set aside for nothing.
fn free_chunks(home: BorrowedFd<'_>, kind: Chunks, wanted: u64) -> io::Result<()> {
    let mut left = MOST_MOVED;
    for percent in STEPS {
        loop {
            let most = if percent == 0 { MOST_EMPTY } else { 1 };
            let moved = match chunks::balance(home, kind, percent, most) {
                Ok(moved) => moved,
                // Somebody else's balance is at work, or there is no room to move this one; a smaller one may fit no better.
                Err(error) if is_refused(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            left = left.saturating_sub(1);
            if left == 0 || chunks::allocation(home)?.unallocated >= wanted {
                return Ok(());
            }
            if moved == 0 || percent == 0 {
                break;
            }
        }
    }
    Ok(())
}

fn is_refused(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::INPROGRESS, Errno::CANCELED, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Does the work; where the file system says that it is full and holds chunks that it does not use, has it give them back and does the work once more.
///
/// # Errors
/// The work's. What a balance could not do is said in it.
pub(crate) fn with_room<T>(home: BorrowedFd<'_>, work: impl Fn() -> Result<T>) -> Result<T> {
    let error = match work() {
        Err(error) if is_full(&error) => error,
        done => return done,
    };
    match make(home, false) {
        Ok(Outcome::NotThis) => Err(error),
        Ok(Outcome::Freed(bytes)) => {
            let again = format!(
                "a balance gave back {} of chunks that were not used, and that was not enough",
                mib(bytes)
            );
            work().map_err(|error| if is_full(&error) { told(error, again) } else { error })
        }
        Ok(Outcome::Stuck) => {
            let state = chunks::allocation(home).map(|now| describe(&now)).unwrap_or_default();
            Err(told(error, format!("{state}; a balance could give nothing back")))
        }
        Err(failed) => Err(told(error, format!("the balance that would make room failed: {failed}"))),
    }
}

/// Room is made for work that cannot be repeated, before it begins. Best effort: the work itself says what it lacks.
pub(crate) fn before_work(home: BorrowedFd<'_>) {
    let _ = make(home, true);
}

fn told(mut error: Error, reason: String) -> Error {
    error.reason = Some(match error.reason.take() {
        Some(before) => format!("{before}; {reason}"),
        None => reason,
    });
    error.hint(
        "remove images or containers that nobody needs, make the file system larger, or add a device to it",
    )
}

/// No space, as opposed to over a quota, which no balance cures.
fn is_full(error: &Error) -> bool {
    if error.kind != ErrorKind::Full {
        return false;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(at) = cause {
        if at.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            return true;
        }
        cause = at.source();
    }
    false
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn describe(now: &Allocation) -> String {
    format!(
        "chunks for data hold {} of which {} are used, those for metadata {} of which {} are used, and {} can be set aside",
        mib(now.data.total),
        mib(now.data.used),
        mib(now.metadata.total),
        mib(now.metadata.used),
        mib(now.unallocated)
    )
}

/// How the devices are set aside, for people.
///
/// # Errors
/// The kernel's.
pub(crate) fn status(home: impl AsFd) -> io::Result<Vec<(String, String)>> {
    let now = chunks::allocation(home)?;
    let used = |share: Share| format!("{} used of {}", mib(share.used), mib(share.total));
    let mut facts = vec![
        ("Data".to_owned(), used(now.data)),
        ("Metadata".to_owned(), used(now.metadata)),
        ("Not set aside".to_owned(), format!("{} of {}", mib(now.unallocated), mib(now.size))),
    ];
    if is_short(&now) {
        let lacking = if now.metadata.free() < now.data.free() { "metadata" } else { "data" };
        let text = format!(
            "nothing is left to set aside for {lacking}, and chunks hold unused room: `vellum gc` runs the balance that frees it"
        );
        facts.push(("Shortage".to_owned(), text));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn allocation(unallocated: u64, data: (u64, u64), metadata: (u64, u64)) -> Allocation {
        let share = |(total, used)| Share { total: total * MIB, used: used * MIB };
        Allocation {
            size: 1000 * MIB,
            unallocated: unallocated * MIB,
            data: share(data),
            metadata: share(metadata),
        }
    }

    #[test]
    fn plain_only_chunks_that_hold_what_lacks_are_balanced() {
        let short = allocation(0, (900, 300), (100, 99));
        assert!(is_curable(&short) && is_short(&short));
        let other_way = allocation(0, (500, 499), (500, 100));
        assert!(is_curable(&other_way) && is_short(&other_way));
        let full = allocation(0, (900, 890), (100, 99));
        assert!(!is_curable(&full) && !is_short(&full));
        let room = allocation(500, (400, 100), (100, 99));
        assert!(!is_curable(&room) && !is_short(&room));
        let not_yet = allocation(0, (500, 200), (500, 200));
        assert!(is_curable(&not_yet) && !is_short(&not_yet));
    }

    #[test]
    fn plain_a_quota_is_not_a_full_disk() {
        let of = |errno: Errno| Error::system("write", io::Error::from(errno));
        assert!(is_full(&of(Errno::NOSPC)));
        assert!(!is_full(&of(Errno::DQUOT)));
        assert!(!is_full(&of(Errno::IO)));
    }
}
