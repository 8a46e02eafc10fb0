//! When a holder is of no use any more.

use super::holder::{LOCK, RECORD};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use std::mem::MaybeUninit;
use std::path::Path;

/// Waits until the store at `root` is gone (its folder is deleted, or nothing of its file system is mounted any more), or until nobody
/// can find the record in `dir`, and takes away what nobody needs then. Moving the store ends nothing.
///
/// Nothing of the store is held open for that: who unmounts or deletes it is not kept from it. Where the kernel has no watches left for
/// this user it never returns; the holder then stays until it is told to end.
pub(super) fn until_gone(dir: &Path, root: &Path) {
    if wait(dir, root).is_ok() {
        // A command that looks for the holder now makes the lock anew; there is no store to enter in any case.
        let _ = std::fs::remove_file(dir.join(RECORD));
        let _ = std::fs::remove_file(dir.join(LOCK));
        let _ = std::fs::remove_dir(dir);
        return;
    }
    loop {
        rustix::event::pause();
    }
}

fn wait(dir: &Path, root: &Path) -> rustix::io::Result<()> {
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    let gone = WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR;
    let store = inotify::add_watch(&watch, root, gone)?;
    let folder = inotify::add_watch(&watch, dir, gone | WatchFlags::DELETE)?;
    // The record may have gone before it was watched.
    if !dir.join(RECORD).exists() {
        return Ok(());
    }
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut events = Reader::new(&watch, &mut buffer);
    loop {
        let event = match events.next() {
            Ok(event) => event,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        // A watch ends by itself with what it watches.
        let ended =
            event.events().intersects(ReadFlags::DELETE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED);
        let record = event.wd() == folder
            && event.file_name().is_some_and(|name| name.to_bytes() == RECORD.as_bytes());
        if record || (ended && (event.wd() == store || event.wd() == folder)) {
            return Ok(());
        }
    }
}
