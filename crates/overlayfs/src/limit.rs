//! Size limits of layers, by project quotas of XFS.
//!
//! A layer with a size has a project's number on its folder, which all that is made in it gets: the upper, overlayfs's scratch folder, the driver's records. XFS counts what has
//! the number, and refuses what would be more than the limit.
//!
//! 1. *impose*, on the new folder while it is empty: its size, as an attribute; a number that nobody uses; the limit; the number on the folder.
//! 2. *lift*, before the folder goes to the trash or is committed: the limit goes, the number stays on what has it. XFS moves nothing into a folder that hands down another
//!    number, and neither the trash nor the objects do.
//!
//! | dies | left | by whom it goes |
//! |---|---|---|
//! | in 1 | a limit on a number that nothing has, or a folder that is half made | the next layer passes over the number; the folder's removal |
//! | in 2 | a layer whose limit is gone | its removal or commit is begun again, as always; a layer that is used on gets its limit back when it is mounted |
//!
//! **A full layer can be mounted.** Overlayfs makes its scratch folder anew, for which XFS wants some hundred kilobytes of room to be left, and mounts read-only if it cannot: nobody could delete
//! anything then. So a layer that has less than a megabyte left when it is mounted for writing gets so much more, up to sixteen above its size in all; and its own limit
//! again when there is room.
//!
//! Numbers are made of layers' ids, so that they lie close together: XFS keeps a record of each that was ever used, thirty to a block. Another store on the same file system that has the
//! number already is passed by.
//!
//! **Only XFS.** ext4 has project quotas too, but lets who has `CAP_SYS_RESOURCE` write past them, and what a container writes is written by overlayfs
//! as who mounted it. XFS asks nobody who he is. It must be mounted with `prjquota`.
//!
//! **Against whom.** The kernel lets the owner of a file give it another number, unless he is in a user namespace. So the limit holds against programs that fill the disk by accident, and against
//! all that run in a user namespace.

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;
use vellum_driver::home::Home;
use vellum_driver::{CreateSpec, Error, ErrorKind, Result, Support};
use vellum_sys::fsinfo::FileSystem;
use vellum_sys::project::{self, Account};
use vellum_types::{LayerId, Size};

/// The upper eight bits of a number: `@` and what comes after it, as many as are tried.
const FAMILIES: std::ops::Range<u32> = 0x40..0x50;

/// The attribute of a layer's folder that says the size that it was made with.
const SIZE: &str = "trusted.vellum.size";
/// The least room of a layer that is mounted for writing.
const SLACK: u64 = 1 << 20;
/// How far a limit may be above the size.
const MOST_SLACK: u64 = 16 << 20;

/// Whether the layers of a home can be limited, and how.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    able: bool,
    reason: &'static str,
}

impl Limits {
    /// Finds out what a home's file system does. Costs two system calls.
    pub fn of(home: impl AsFd, rootless: bool) -> Self {
        let no = |reason| Self { able: false, reason };
        if rootless {
            return no("project quotas are set with privileges of the host");
        }
        if !FileSystem::of(home.as_fd()).is_ok_and(|found| found.name == "xfs") {
            return no("of all file systems only XFS keeps an overlay's upper within a project's limit");
        }
        match project::is_enforced(home) {
            Ok(true) => Self { able: true, reason: "project quotas of XFS" },
            _ => no("this XFS is mounted without prjquota"),
        }
    }

    /// As a capability.
    pub fn support(&self) -> (Support, &'static str) {
        (if self.able { Support::Yes } else { Support::No }, self.reason)
    }

    /// The size limit that a new layer is to have.
    ///
    /// # Errors
    /// As [`CreateSpec::size`]; [`ErrorKind::Unsupported`]: it cannot be had here.
    pub fn wanted(&self, spec: &CreateSpec<'_>, driver: &str, id: LayerId) -> Result<Option<Size>> {
        match spec.size(driver, id)? {
            Some(_) if !self.able => {
                let reason = format!("{driver} has no storage option 'size' here: {}", self.reason);
                Err(Error::new(ErrorKind::Unsupported, "create", reason)
                    .layer(id)
                    .hint("keep the store on an XFS that is mounted with prjquota, or use the driver btrfs"))
            }
            size => Ok(size),
        }
    }

    /// Limits what may be made in the new folder of a layer.
    ///
    /// # Errors
    /// The file system's.
    pub fn impose(&self, folder: impl AsFd, id: LayerId, size: Option<Size>) -> Result<()> {
        match size {
            Some(size) => limit(folder.as_fd(), id, size.bytes()).map_err(failed("limit the size", id)),
            None => Ok(()),
        }
    }

    /// Limits the new folder of a layer as that of the layer `from` is, of which it is to be a copy.
    ///
    /// # Errors
    /// The file system's.
    pub fn share(&self, home: &Home, from: LayerId, folder: impl AsFd, id: LayerId) -> Result<()> {
        match self.limited(home, from)? {
            Some(found) => limit(folder.as_fd(), id, found.size).map_err(failed("limit the size", id)),
            None => Ok(()),
        }
    }

    /// Sees to it that there is room for overlayfs to mount the layer for writing.
    ///
    /// # Errors
    /// The file system's.
    pub fn make_room(&self, home: &Home, id: LayerId) -> Result<()> {
        let Some(Limited { number, size, account }) = self.limited(home, id)? else { return Ok(()) };
        let wanted = (account.taken + SLACK).clamp(size, size.saturating_add(MOST_SLACK));
        if account.most == Some(wanted) {
            return Ok(());
        }
        project::limit(home.dir(), number, Some(wanted)).map_err(failed("make room for mounting", id))
    }

    /// Takes the limit away from a layer that is to be removed or committed; says whether it had one.
    ///
    /// # Errors
    /// The file system's.
    pub fn lift(&self, home: &Home, id: LayerId) -> Result<Lifted> {
        let found = self.limited(home, id)?;
        if let Some(Limited { number, .. }) = &found {
            project::limit(home.dir(), *number, None).map_err(failed("lift the size limit", id))?;
        }
        Ok(Lifted(found))
    }

    /// Gives a layer the limit back that [`Limits::lift`] took away: it is not committed after all.
    pub fn restore(&self, home: &Home, Lifted(found): Lifted) {
        if let Some(Limited { number, size, account }) = found {
            // The error that the caller has to tell is another one; `check` finds a limit that is not kept.
            let _ = project::limit(home.dir(), number, Some(account.most.unwrap_or(size)));
        }
    }

    /// Says when the limit that an active layer was made with is not kept.
    ///
    /// # Errors
    /// The file system's.
    pub fn check(&self, home: &Home, id: LayerId) -> Result<Option<String>> {
        let Some(folder) = home.folder(id)? else { return Ok(None) };
        let has_number = project::number(&folder).map_err(failed("look at the size limit", id))?.is_some();
        let kept = self.limited(home, id)?.is_some_and(|found| found.account.most.is_some());
        Ok((has_number && !kept).then(|| {
            "its size limit is not kept: the file system is mounted without prjquota, or somebody took the limit away".into()
        }))
    }

    /// The most bytes that a layer may take and those that it takes, as pairs for who inspects it.
    ///
    /// # Errors
    /// The file system's.
    pub fn facts(&self, home: &Home, id: LayerId) -> Result<Vec<(String, String)>> {
        let Some(Limited { size, account, .. }) = self.limited(home, id)? else { return Ok(Vec::new()) };
        Ok(vec![("Size limit".into(), size.to_string()), ("Size counted".into(), account.taken.to_string())])
    }

    fn limited(&self, home: &Home, id: LayerId) -> Result<Option<Limited>> {
        if !self.able {
            return Ok(None);
        }
        let Some(folder) = home.folder(id)? else { return Ok(None) };
        let look = || -> io::Result<Option<Limited>> {
            let Some(number) = project::number(&folder)? else { return Ok(None) };
            let Some(size) = size_of(&folder)? else { return Ok(None) };
            Ok(Some(Limited { number, size, account: project::account(&folder, number)? }))
        };
        look().map_err(failed("look at the size limit", id))
    }
}

/// A layer with a size.
#[derive(Debug, Clone, Copy)]
struct Limited {
    number: u32,
    /// What it was made with.
    size: u64,
    account: Account,
}

/// What [`Limits::lift`] took away.
#[derive(Debug)]
#[must_use]
pub struct Lifted(Option<Limited>);

fn failed(what: &'static str, id: LayerId) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::system(what, error).layer(id)
}

fn limit(folder: impl AsFd, id: LayerId, bytes: u64) -> io::Result<()> {
    rustix::fs::fsetxattr(&folder, SIZE, bytes.to_string().as_bytes(), XattrFlags::empty())?;
    for family in FAMILIES {
        let number = family << 24 | (id.get() & 0xff_ffff);
        if project::account(&folder, number)? == Account::default() {
            project::limit(&folder, number, Some(bytes))?;
            return project::assign(&folder, number);
        }
    }
    Err(io::Error::other("all project numbers for this layer are in use by other stores on this file system"))
}

fn size_of(folder: impl AsFd) -> io::Result<Option<u64>> {
    let mut text = [0; 32];
    match rustix::fs::fgetxattr(folder, SIZE, &mut text[..]) {
        Ok(length) => Ok(std::str::from_utf8(&text[..length]).ok().and_then(|text| text.parse().ok())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
