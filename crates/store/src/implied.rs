//! Directories that a layer's archive did not list, found after somebody else has unpacked it.
//!
//! An archive may name `etc/deep/new` without `etc/deep`. Whoever unpacks it onto its parent gives the directory what it has there. containerd's appliers, given a layer without its
//! parent (capability `rebase`), can only make a directory of their own: of root, 0755. Laid over the parent it would change owner and mode for all containers, the layer's
//! root included, which most archives do not list.
//!
//! Who unpacks says nothing of that, but the disk does: a directory that is listed has the archive's time, set when all is in it, and that is from before the archive was written. One that is
//! not listed has the time when the last of its entries was made, after the snapshot was.

use crate::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::CWD;
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::target::LayerPath;
use vellum_archive::tree::{self, Form, Visit};

/// The clock that file systems read may be this far behind: two ticks of the slowest kernels.
const LAG: SignedDuration = SignedDuration::from_millis(20);

/// What a directory is that an applier makes because it needs one.
const MADE: (u32, u32, u32) = (0o755, 0, 0);

/// The directories of the folder of a layer, parents first, that have been made as such since the snapshot was.
pub(crate) fn of_unpacked(folder: &Path, since: Timestamp) -> Result<Vec<LayerPath>> {
    let since = since.checked_sub(LAG).unwrap_or(since);
    let failed = |e| Error::io("look for directories that were not listed in", folder, e);
    let root = tree::open_dir(CWD, folder.as_os_str()).map_err(failed)?;
    let form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: true };
    let mut found = Vec::new();
    tree::walk_directories(std::os::fd::AsFd::as_fd(&root), form, &mut |path, node| {
        let stat = &node.stat;
        let made = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == MADE;
        // A time that is none is not one of the last minutes.
        let changed = Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).unwrap_or_default());
        if made && changed.is_ok_and(|changed| changed >= since) {
            found.push(path.clone());
        }
        Ok(Visit::Enter)
    })
    .map_err(|e| failed(std::io::Error::other(e)))?;
    Ok(found)
}
