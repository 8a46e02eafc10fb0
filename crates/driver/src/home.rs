//! What drivers share that keep a folder for each layer.
//!
//! ```text
//!   HOME/                0700
//!     <id>/              0700, made first: whoever makes it owns the id
//!       <record>         one line: `active`, `view c:b:a` or `committed c:b:a`, the chain below nearest first;
//!                        ` hides 2` after it when a layer's root is opaque and the two farthest are not seen;
//!                        ` nested` at the end when whiteouts of an inner overlay are kept in it or below
//!       …                the driver's
//! ```
//!
//! A folder without a record, or with one that does not end in a line feed, is half made: [`Home::record`] calls it damaged, and
//! [`Home::remove`] takes it away. A record is replaced by a rename, so that readers see the old one or the new one. Nothing is
//! synced here (see the crate's documentation on durability). The caller holds the layer's lock.

use crate::{Changed, Error, ErrorKind, Kind, LayerInfo, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use vellum_archive::tree::{self, read_dir};
use vellum_types::LayerId;

/// What lies in a layer's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the layer is.
    pub kind: Kind,
    /// The layers below, nearest first.
    pub chain: Vec<LayerId>,
    /// How many of the farthest are not seen, because the root of this layer, or of one below it, is opaque.
    pub hidden: usize,
    /// This layer or one below keeps character devices 0:0 as whiteouts for an inner overlay ([`vellum_archive::nested`]).
    pub nested: bool,
}

/// What lies below a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Below {
    /// As [`Record::chain`].
    pub chain: Vec<LayerId>,
    /// As [`Record::hidden`].
    pub hidden: usize,
    /// As [`Record::nested`], of the layers below.
    pub nested: bool,
}

impl Below {
    /// The record of the layer on top.
    pub fn record(self, kind: Kind) -> Record {
        let Self { chain, hidden, nested } = self;
        Record { kind, chain, hidden, nested }
    }
}

impl Record {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n')?;
        let (text, nested) = text.strip_suffix(" nested").map_or((text, false), |text| (text, true));
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (chain, hidden) = match rest.split_once(" hides ") {
            Some((chain, hidden)) => (chain, hidden.parse().ok()?),
            None => (rest, 0),
        };
        let kind = match kind {
            "active" => Kind::Active,
            "view" => Kind::View,
            "committed" => Kind::Committed,
            _ => return None,
        };
        let ids = chain.split(':').filter(|id| !id.is_empty());
        let chain: Vec<LayerId> = ids.map(|id| id.parse().ok()).collect::<Option<_>>()?;
        (hidden <= chain.len()).then_some(Self { kind, chain, hidden, nested })
    }

    fn text(&self) -> String {
        let mut text = match self.kind {
            Kind::Active => "active",
            Kind::View => "view",
            Kind::Committed => "committed",
        }
        .to_owned();
        for (at, id) in self.chain.iter().enumerate() {
            text.push(if at == 0 { ' ' } else { ':' });
            text.push_str(&id.to_string());
        }
        if self.hidden > 0 {
            text.push_str(&format!(" hides {}", self.hidden));
        }
        if self.nested {
            text.push_str(" nested");
        }
        text.push('\n');
        text
    }

    /// The layers below whose content is seen.
    pub fn seen(&self) -> &[LayerId] {
        &self.chain[..self.chain.len().saturating_sub(self.hidden)]
    }

    /// As the trait tells it.
    pub fn info(&self, id: LayerId) -> LayerInfo {
        LayerInfo { id, kind: self.kind, parent: self.chain.first().copied() }
    }
}

/// A driver's home. See the module's documentation.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    dir: OwnedFd,
    driver: &'static str,
    record: &'static str,
}

impl Home {
    /// Opens, and makes if need be, the home of `driver`, whose layers have their record in a file of the name `record`.
    ///
    /// # Errors
    /// The file system's; somebody else owns it or may enter it.
    pub fn open(path: &Path, driver: &'static str, record: &'static str) -> Result<Self> {
        let dir = vellum_sys::file::private_folder(path).map_err(|error| {
            Error::system(format!("open the home {}", path.display()), std::io::Error::other(error))
        })?;
        Ok(Self { path: path.to_owned(), dir, driver, record })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a part of a layer is.
    pub fn part(&self, id: LayerId, part: &str) -> PathBuf {
        self.path.join(id.to_string()).join(part)
    }

    /// The home itself, open.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes the layer's folder.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`].
    pub fn make(&self, id: LayerId) -> Result<OwnedFd> {
        let name = id.to_string();
        match rustix::fs::mkdirat(&self.dir, &name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Error::new(ErrorKind::Exists, "create", "there is a layer of this id").layer(id));
            }
            Err(error) => return Err(Error::system("create", error).layer(id)),
        }
        tree::open_dir(self.dir(), OsStr::new(&name))
            .map_err(|error| Error::system("create", error).layer(id))
    }

    /// The layer's folder, open; `None` if there is none.
    ///
    /// # Errors
    /// The file system's.
    pub fn folder(&self, id: LayerId) -> Result<Option<OwnedFd>> {
        match tree::open_dir(self.dir(), OsStr::new(&id.to_string())) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::system("open the folder", error).layer(id)),
        }
    }

    /// A part of a layer that must be there, open.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Damaged`] if the layer is there and the part is not.
    pub fn open_part(&self, id: LayerId, part: &str) -> Result<OwnedFd> {
        let found = tree::open_dir(self.dir(), OsStr::new(&format!("{id}/{part}")));
        if found.is_err() && self.folder(id)?.is_none() {
            return Err(Error::not_found(format!("open {part}"), id));
        }
        found.map_err(|error| {
            let mut wrapped =
                Error::system(format!("open {}", self.part(id, part).display()), error).layer(id);
            wrapped.kind = ErrorKind::Damaged;
            wrapped
        })
    }

    /// The layer's record; `None` if there is no such layer.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: the folder is there and has no sound record.
    pub fn record(&self, id: LayerId) -> Result<Option<Record>> {
        let damaged = |reason: String| Error::new(ErrorKind::Damaged, "read the record", reason).layer(id);
        let path = format!("{id}/{}", self.record);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut text = String::new();
        match rustix::fs::openat(&self.dir, &path, flags, Mode::empty()) {
            Ok(file) => {
                // 500 ids of six digits and a colon, with room to spare.
                std::fs::File::from(file)
                    .take(8192)
                    .read_to_string(&mut text)
                    .map_err(|error| damaged(format!("{path}: {error}")))?;
            }
            Err(Errno::NOENT) if self.folder(id)?.is_none() => return Ok(None),
            Err(error) => return Err(damaged(format!("{path}: {error}"))),
        }
        Record::parse(&text).map(Some).ok_or_else(|| damaged(format!("{path} is not what was written")))
    }

    /// The record of a layer that must be there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or as [`Home::record`].
    pub fn must(&self, operation: &str, id: LayerId) -> Result<Record> {
        self.record(id)?.ok_or_else(|| Error::not_found(operation, id))
    }

    /// The record of a layer that must be active.
    ///
    /// # Errors
    /// [`ErrorKind::NotActive`], or as [`Home::must`].
    pub fn active(&self, operation: &str, id: LayerId) -> Result<Record> {
        let record = self.must(operation, id)?;
        if record.kind != Kind::Active {
            return Err(Error::new(ErrorKind::NotActive, operation, "the layer is not active").layer(id));
        }
        Ok(record)
    }

    /// The record of a layer that is to be committed on `parent`; `None` if that is done already.
    ///
    /// # Errors
    /// [`ErrorKind::NotActive`], [`ErrorKind::Invalid`], as [`crate::Driver::commit`] tells; [`ErrorKind::Unsupported`] if the parent is named
    /// only now and not `late`.
    pub fn to_commit(&self, id: LayerId, parent: Option<LayerId>, late: bool) -> Result<Option<Record>> {
        let record = self.must("commit", id)?;
        let fail = |kind, reason| Err(Error::new(kind, "commit", reason).layer(id));
        let known = record.chain.first().copied();
        match record.kind {
            Kind::View => fail(ErrorKind::NotActive, "the layer is a view"),
            Kind::Committed if known == parent => Ok(None),
            Kind::Committed => fail(ErrorKind::NotActive, "the layer is committed on another parent"),
            Kind::Active if known.is_none() && parent.is_some() && !late => {
                fail(ErrorKind::Unsupported, "this driver must know the parent when the layer is made")
            }
            Kind::Active if known != parent && (known.is_some() || !late) => {
                fail(ErrorKind::Invalid, "the layer was made on another parent")
            }
            Kind::Active => Ok(Some(record)),
        }
    }

    /// What lies below a layer that is to lie on `parent`: its chain, and what it inherits. Costs one short file, however deep it lies.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::NotCommitted`]; [`ErrorKind::TooDeep`] beyond `most` layers in all.
    pub fn below(&self, operation: &str, parent: Option<LayerId>, most: u64) -> Result<Below> {
        let Some(parent) = parent else { return Ok(Below::default()) };
        let Record { kind, mut chain, hidden, nested } = self.must(operation, parent)?;
        if kind != Kind::Committed {
            let reason = "the parent is not committed";
            return Err(Error::new(ErrorKind::NotCommitted, operation, reason).layer(parent));
        }
        chain.insert(0, parent);
        if chain.len() as u64 >= most {
            let reason = format!("it would be layer {} of a chain, and {most} is the most", chain.len() + 1);
            return Err(Error::new(ErrorKind::TooDeep, operation, reason)
                .hint("squash some of the image's layers into one"));
        }
        Ok(Below { chain, hidden, nested })
    }

    /// Writes the record of a layer that was made just now, and of which nobody knows yet: without it, or with a part of it, it is half made.
    ///
    /// # Errors
    /// The file system's; there is one.
    pub fn write_first_record(&self, id: LayerId, record: &Record) -> Result<()> {
        vellum_sys::file::create(&self.dir, format!("{id}/{}", self.record), 0o600)
            .and_then(|mut file| file.write_all(record.text().as_bytes()))
            .map_err(|error| Error::system("write the record", error).layer(id))
    }

    /// Writes the layer's record, in place of the one that it has.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_record(&self, id: LayerId, record: &Record) -> Result<()> {
        let path = format!("{id}/{}", self.record);
        let fresh = format!("{path}.new");
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.dir, &fresh, flags, Mode::RUSR | Mode::WUSR)?;
            std::fs::File::from(file).write_all(record.text().as_bytes())?;
            Ok(rustix::fs::renameat(&self.dir, &fresh, &self.dir, &path)?)
        };
        write().map_err(|error| Error::system("write the record", error).layer(id))
    }

    /// Calls `visit` for every layer. See [`crate::Driver::walk`].
    ///
    /// # Errors
    /// The file system's; what `visit` returns.
    pub fn walk(&self, visit: &mut dyn FnMut(LayerId, Result<LayerInfo>) -> Result<()>) -> Result<()> {
        let names = read_dir(self.dir())
            .map_err(|error| Error::system(format!("list the home {}", self.path.display()), error))?;
        for id in names.iter().filter_map(|name| name.to_str()?.parse::<LayerId>().ok()) {
            match self.record(id) {
                Ok(None) => {}
                Ok(Some(record)) => visit(id, Ok(record.info(id)))?,
                Err(error) => visit(id, Err(error))?,
            }
        }
        Ok(())
    }

    /// Moves the layer's folder into the trash as `<driver>-<id>-<n>`; on a disk too full for that, deletes it.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed> {
        let failed = |error| Error::system("move to the trash", error).layer(id);
        let trash = tree::open_dir(CWD, trash.as_os_str()).map_err(failed)?;
        for n in 0..=u32::MAX {
            let name = format!("{}-{id}-{n}", self.driver);
            match rustix::fs::renameat_with(&self.dir, id.to_string(), &trash, name, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(Changed::Yes),
                Err(Errno::NOENT) => return Ok(Changed::No),
                Err(Errno::EXIST) => {}
                // A full disk has no room for the new name; deleting here and now makes some.
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    tree::remove(self.dir(), OsStr::new(&id.to_string()))?;
                    return Ok(Changed::Yes);
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(failed(io::ErrorKind::AlreadyExists.into()))
    }

    /// Gives a committed layer's folder another, free id. See [`crate::Driver::rename`].
    ///
    /// # Errors
    /// As the trait says.
    pub fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed> {
        let taken = || Error::new(ErrorKind::Exists, "rename", format!("there is a layer {to}")).layer(from);
        let committed = |record: &Record| record.kind == Kind::Committed;
        let Some(record) = self.record(from)? else {
            return match self.record(to)? {
                Some(there) if committed(&there) => Ok(Changed::No),
                _ => Err(Error::not_found("rename", from)),
            };
        };
        if !committed(&record) {
            return Err(
                Error::new(ErrorKind::NotCommitted, "rename", "the layer is not committed").layer(from)
            );
        }
        match rustix::fs::renameat_with(
            &self.dir,
            from.to_string(),
            &self.dir,
            to.to_string(),
            RenameFlags::NOREPLACE,
        ) {
            Ok(()) => Ok(Changed::Yes),
            Err(Errno::EXIST) => Err(taken()),
            Err(error) => Err(Error::system("rename", error).layer(from)),
        }
    }

    /// Brings the record and the folders that name the layer to the disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn sync(&self, id: LayerId) -> Result<()> {
        let folder = self.folder(id)?.ok_or_else(|| Error::not_found("sync", id))?;
        let sync = || -> io::Result<()> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            rustix::fs::fsync(rustix::fs::openat(&folder, self.record, flags, Mode::empty())?)?;
            rustix::fs::fsync(&folder)?;
            Ok(rustix::fs::fsync(&self.dir)?)
        };
        sync().map_err(|error| Error::system("sync", error).layer(id))
    }

    /// Takes back a layer that could not be made, after the error that is to be reported.
    pub fn take_back(&self, id: LayerId) {
        let name = id.to_string();
        // What cannot be removed now is still half made, and `remove` takes it later.
        let _ = rustix::fs::unlinkat(&self.dir, format!("{id}/{}", self.record), AtFlags::empty());
        let _ = tree::remove(self.dir(), OsStr::new(&name));
    }

    /// Says what is wrong with the chain of a layer: layers that are missing, not committed, or of another chain.
    ///
    /// # Errors
    /// The file system's.
    pub fn check_chain(&self, record: &Record) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        let Some((parent, rest)) = record.chain.split_first() else { return Ok(findings) };
        match self.record(*parent) {
            Ok(None) => findings.push(format!("its parent {parent} is missing")),
            Ok(Some(below)) if below.kind != Kind::Committed => {
                findings.push(format!("its parent {parent} is not committed"));
            }
            Ok(Some(below)) if below.chain != rest => {
                findings.push(format!("its chain is not that of its parent {parent}"));
            }
            Ok(Some(_)) => {}
            Err(error) if error.kind == ErrorKind::Damaged => {
                findings.push(format!("its parent {parent} is damaged"));
            }
            Err(error) => return Err(error),
        }
        Ok(findings)
    }
}

/// Deletes what was moved into the trash. See [`crate::Driver::purge`].
///
/// # Errors
/// The file system's.
pub fn purge(trashed: &Path) -> Result<()> {
    let failed = |error: io::Error| Error::system(format!("delete {}", trashed.display()), error);
    let (Some(folder), Some(name)) = (trashed.parent(), trashed.file_name()) else {
        return Err(Error::new(ErrorKind::Invalid, "delete from the trash", "it names no entry of a folder"));
    };
    match tree::open_dir(CWD, folder.as_os_str()) {
        Ok(folder) => Ok(tree::remove(folder.as_fd(), name)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_records_round_trip_and_half_written_ones_are_refused() {
        let id = |n| LayerId::new(n).unwrap();
        for record in [
            Record { kind: Kind::Active, chain: vec![], hidden: 0, nested: false },
            Record { kind: Kind::View, chain: vec![id(40)], hidden: 1, nested: true },
            Record { kind: Kind::Committed, chain: vec![id(3), id(2), id(1)], hidden: 2, nested: true },
        ] {
            assert_eq!(Record::parse(&record.text()), Some(record));
        }
        let record = Record { kind: Kind::Committed, chain: vec![id(36), id(1)], hidden: 0, nested: false };
        assert_eq!(record.text(), "committed 10:1\n");
        assert_eq!(Record { hidden: 1, ..record.clone() }.text(), "committed 10:1 hides 1\n");
        assert_eq!(Record { nested: true, ..record }.text(), "committed 10:1 nested\n");
        assert!(Record::parse("committed 1 hides 2\n").is_none());
        for bad in ["", "active", "active 3:2", "activ\n", "view 0\n", "committed 3:../x\n"] {
            assert_eq!(Record::parse(bad), None, "{bad}");
        }
    }
}
