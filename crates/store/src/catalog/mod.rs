//! The catalog: what the store has, in SQLite.
//!
//! ```text
//! layers ◀── image_layers ──▶ images ◀── names          pins: (owner, layer)
//!   ▲ ▲ ▲                                               meta: key, value
//!   │ │ └──── snapshots (front ends')
//!   │ └────── save_points ──▶ containers
//!   ├──────── containers
//!   └──────── damaged (known to be)
//! ```
//!
//! A layer's `state` is all there is of intents:
//!
//! ```text
//!           intent                    ready                       gone
//! (no row) ────────▶ staging ────────────────────▶ ready ────▶ removing ────▶ (no row)
//!           NORMAL      │             FULL              FULL  ▲           NORMAL
//!                       └──────────── rolled back ────────────┘
//! ```
//!
//! NORMAL commits are not synced: a killed process leaves them, a power cut may take the latest of them away,
//! always all from some moment on, and what they spoke of is then on disk and unrecorded, which is garbage. FULL commits
//! are synced, and with them all that was committed before; [`log`] says how, and what others may see of them by then.
//!
//! # A flipped bit in the log
//! SQLite takes a frame of the log (`-wal`) whose checksum is wrong for one that a power cut tore, and reads only up to the commit before it. A check ([`Store::check_at`](crate::Store::check_at)) tells the two
//! apart before SQLite opens the catalog ([`flip`]), and mends it. Other commands do not read the log a second time: the first one that changes something goes on from the commit before the flipped bit, and
//! later ones are lost. What bounds that is the log's length (64 pages, of a server's 224, then it is written into the file), and that images can be loaded again.
//!
//! # Rules
//! - `catalog.db` is opened by SQLite and nobody else: closing any other descriptor of it would drop its locks.
//!   Only its log (`-wal`) and the log's index (`-shm`) are made before SQLite opens it, when there are none ([`room`]).
//! - A connection is used by one thread at a time and never crosses a fork (children are started by exec, and every
//!   descriptor is closed on exec).
//! - Every write is BEGIN IMMEDIATE, behind the lock `locks/write`, on which the kernel queues writers: SQLite's own
//!   busy handler sleeps and is unfair.
//! - Reads are short transactions; nothing slow happens inside one, because a reader pins the log.
//! - Writers checkpoint the log and begin it anew when it has 64 pages: whoever opens the store alone reads the log once, so it must
//!   stay small. Who has a keeper ([`crate::keeper`]) leaves that to it, behind the requests.

pub(crate) mod containers;
pub(crate) mod damage;
pub(crate) mod flip;
pub(crate) mod images;
pub(crate) mod intents;
pub(crate) mod layers;
mod log;
pub(crate) mod room;
pub(crate) mod schema;
pub(crate) mod snapshots;

use crate::{Code, Error, Result};
use log::Log;
use rusqlite::{Connection, OpenFlags, Row, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vellum_sys::lock::FileLock;

/// How durable a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Survives the death of the process.
    Normal,
    /// Survives a power cut.
    Full,
}

/// Connections to the catalog.
#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    write_lock: PathBuf,
    read_only: bool,
    /// Connections are for this process alone: the disk is full.
    alone: AtomicBool,
    /// Pages in the log, as the last commit of this process saw it.
    log_pages: Arc<AtomicI32>,
    /// A writer whose commit makes the log this long begins it anew.
    most_pages: AtomicI32,
    log: Log,
    idle: Mutex<Vec<Connection>>,
}

/// A log of so many pages is written into the file and begun anew.
const LOG_PAGES: i32 = 64;

/// The same for the keeper of a server, which does it seldom and while nobody waits. No longer than the room that the log has from the beginning.
const KEPT_PAGES: i32 = 224;

/// Where the keeper does not get to it, because somebody reads all the time, a writer does.
const MOST_PAGES: i32 = 2048;

/// How long SQLite itself waits for its locks, beyond the queue.
const BUSY: Duration = Duration::from_secs(30);

impl Catalog {
    /// Opens the catalog that is there.
    pub(crate) fn open(path: &Path, write_lock: &Path, read_only: bool) -> Result<Self> {
        let catalog = Self::new(path, write_lock, read_only);
        catalog.give_back(catalog.connect(false)?);
        Ok(catalog)
    }

    fn new(path: &Path, write_lock: &Path, read_only: bool) -> Self {
        Self {
            path: path.to_owned(),
            write_lock: write_lock.to_owned(),
            read_only,
            alone: AtomicBool::new(false),
            log_pages: Arc::default(),
            most_pages: AtomicI32::new(LOG_PAGES),
            log: Log::new(path),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Makes a catalog with these `meta` rows, where there is none (two at once make one).
    pub(crate) fn create(path: &Path, write_lock: &Path, meta: &[(&str, String)]) -> Result<Self> {
        let catalog = Self::new(path, write_lock, false);
        let lock = catalog.queue()?;
        let mut connection = catalog.connect(true)?;
        schema::create(&mut connection, meta)?;
        drop(lock);
        catalog.give_back(connection);
        Ok(catalog)
    }

    /// A connection: an ordinary one, or one for this process alone where a full disk leaves no room for the log's index.
    fn connect(&self, create: bool) -> Result<Connection> {
        if !self.read_only {
            room::make_files(&self.path)?;
        }
        let until = Instant::now() + BUSY;
        loop {
            if !self.alone.load(Ordering::Relaxed) {
                match self.connect_as(create, false) {
                    Err(e) if e.code() == Code::Full => {}
                    result => return result,
                }
                self.path.parent().into_iter().for_each(crate::reserve::release);
            }
            match self.connect_as(create, true) {
                // Another process has it open, and so the index is there; or it is alone with it, and ends soon.
                Err(e) if e.code() == Code::InUse && Instant::now() < until => {}
                result => {
                    self.alone.store(result.is_ok(), Ordering::Relaxed);
                    return result;
                }
            }
        }
    }

    /// Writes the log into the file, and begins it anew. The writer after a whole checkpoint does the second by itself, but only in the
    /// process that made the checkpoint: a process that opens the catalog alone does not know of it, so commands that write once each would
    /// let the log grow for ever, and all of them would read it. What fails here is done by a later writer. `true`: all of it is in the file, and on the disk.
    fn begin_log_anew(connection: &Connection) -> bool {
        if !Self::checkpoint(connection) {
            return false;
        }
        let changed = connection.execute_batch(
            "BEGIN IMMEDIATE;
             INSERT INTO meta (key, value) VALUES ('log', '0')
                 ON CONFLICT (key) DO UPDATE SET value = CASE value WHEN '0' THEN '1' ELSE '0' END;
             COMMIT",
        );
        if changed.is_err() && !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        true
    }

    /// Writes what the log has into the file. `true`: nothing is left, because no reader of an older state keeps some of it.
    fn checkpoint(connection: &Connection) -> bool {
        let checkpoint = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            Ok((row.get::<_, i32>(1)?, row.get::<_, i32>(2)?))
        });
        checkpoint.is_ok_and(|(pages, moved)| pages == moved)
    }

    /// From now on somebody calls [`Catalog::tidy`], behind the requests.
    pub(crate) fn is_kept(&self) {
        self.most_pages.store(MOST_PAGES, Ordering::Relaxed);
    }

    /// Whether there is something for [`Catalog::tidy`] to do.
    pub(crate) fn is_untidy(&self) -> bool {
        self.log_pages.load(Ordering::Relaxed) >= KEPT_PAGES
    }

    /// Begins the log anew. Most of it is written into the file while others write on.
    pub(crate) fn tidy(&self) -> Result<()> {
        let connection = self.lend()?;
        let _ = Self::checkpoint(&connection);
        let queue = self.queue()?;
        let number = self.log.written();
        if Self::begin_log_anew(&connection) {
            self.log.settled(number);
        }
        drop(queue);
        self.give_back(connection);
        Ok(())
    }

    fn connect_as(&self, create: bool, alone: bool) -> Result<Connection> {
        let mut flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE;
        if create {
            flags |= OpenFlags::SQLITE_OPEN_CREATE;
        }
        let mut connection = if alone {
            room::open_alone(&self.path, flags)?
        } else {
            let connection = Connection::open_with_flags(&self.path, flags)
                .map_err(|e| Error::from(e).object(self.path.display()))?;
            connection.busy_timeout(BUSY)?;
            connection
        };
        connection.set_prepared_statement_cache_capacity(64);
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Else every statement on a table with a partial index is planned anew for every value that is bound to it.
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.execute_batch(
            "PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0;
             PRAGMA journal_size_limit = 4194304; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
        )?;
        let pages = Arc::clone(&self.log_pages);
        connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, now| {
            pages.store(now, Ordering::Relaxed);
            Ok(())
        }))?;
        if self.read_only {
            connection.pragma_update(None, "query_only", true)?;
        }
        // The first look at the file makes the log's index, which needs room.
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))?;
        connection.busy_timeout(BUSY)?;
        Ok(connection)
    }

    fn lend(&self) -> Result<Connection> {
        let idle =
            self.idle.lock().map_or_else(|poisoned| poisoned.into_inner().pop(), |mut idle| idle.pop());
        match idle {
            Some(connection) => Ok(connection),
            None => self.connect(false),
        }
    }

    fn give_back(&self, connection: Connection) {
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(connection);
        }
    }

    /// A short transaction that sees one state of the catalog and changes nothing.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.lend()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
        let out = work(&transaction);
        drop(transaction);
        self.give_back(connection);
        out
    }

    /// As [`Catalog::read`], and what it gives is on the disk: for who deletes something because of it.
    pub(crate) fn read_settled<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let out = self.read(work)?;
        self.log.settle()?;
        Ok(out)
    }

    /// The lock of writers.
    fn queue(&self) -> Result<FileLock> {
        FileLock::exclusive(&self.write_lock).map_err(|e| Error::io("take the lock", &self.write_lock, e))
    }

    /// One change. An error of `work` takes all of it back; one of the disk, when a durable change is brought to it, does not: see [`log`].
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        if self.read_only {
            return Err(Error::new(Code::Unsupported, "change the store", "it was opened for reading only"));
        }
        let mut connection = self.lend()?;
        let queue = self.queue()?;
        if let Err(e) = self.log.ready() {
            drop(queue);
            self.give_back(connection);
            return Err(e);
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let out = match work(&transaction) {
            Ok(out) => transaction.commit().map(|()| out).map_err(Error::from),
            Err(e) => {
                drop(transaction);
                Err(e)
            }
        };
        let number = self.log.written();
        if out.is_ok()
            && self.log_pages.load(Ordering::Relaxed) >= self.most_pages.load(Ordering::Relaxed)
            && Self::begin_log_anew(&connection)
        {
            self.log.settled(number);
        }
        drop(queue);
        // Dropping the transaction has rolled back. Where that failed the connection is still inside it, and is not used again. Others
        // are kept: closing the last one would have the log's index made anew, which a full disk does not allow.
        if connection.is_autocommit() {
            self.give_back(connection);
        }
        if out.is_ok() && durability == Durability::Full {
            self.log.reach(number)?;
        }
        out
    }

    /// Writes the log into the file and empties it, so that the file can be moved alone.
    pub(crate) fn settle(&self) -> Result<()> {
        let connection = self.lend()?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// What SQLite itself says of the file's soundness; empty when it is sound.
    pub(crate) fn quick_check(&self) -> Result<Vec<String>> {
        self.read(|tx| {
            let mut statement = tx.prepare("PRAGMA integrity_check")?;
            let mut lines: Vec<String> =
                statement.query_map([], |row| row.get(0))?.collect::<std::result::Result<_, _>>()?;
            let mut foreign = tx.prepare("PRAGMA foreign_key_check")?;
            let mut rows = foreign.query([])?;
            while let Some(row) = rows.next()? {
                lines.push(format!("a row of {} refers to what is not there", row.get::<_, String>(0)?));
            }
            lines.retain(|line| line != "ok");
            Ok(lines)
        })
    }
}

/// The text of a column as a value of one of our types.
pub(crate) fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|e: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// As [`parsed`], of a column that may be empty.
pub(crate) fn parsed_or_none<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        return Ok(None);
    }
    parsed(row, column).map(Some)
}

/// A column with a layer's id.
pub(crate) fn layer_id(row: &Row<'_>, column: usize) -> rusqlite::Result<vellum_types::LayerId> {
    let number: u32 = row.get(column)?;
    vellum_types::LayerId::new(number)
        .ok_or_else(|| rusqlite::Error::IntegralValueOutOfRange(column, i64::from(number)))
}

/// As [`layer_id`], of a column that may be empty.
pub(crate) fn layer_id_or_none(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<vellum_types::LayerId>> {
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        return Ok(None);
    }
    layer_id(row, column).map(Some)
}

/// A column with a size.
pub(crate) fn size(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, Option<i64>>(column).map(|n| n.unwrap_or(0).max(0).cast_unsigned())
}

/// A column with a point in time, in nanoseconds since 1970.
pub(crate) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<jiff::Timestamp> {
    let ns: i64 = row.get(column)?;
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, ns))
}

/// A point in time as the catalog keeps it.
pub(crate) fn nanoseconds(time: jiff::Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// A size as the catalog keeps it.
pub(crate) fn integer(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Whether a file is there that could be a catalog, without opening it.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.len() > 0)
}

/// Makes the catalog's file with the right mode before SQLite does; only where there is none.
pub(crate) fn make_file(path: &Path) -> Result<()> {
    match vellum_sys::file::create(rustix::fs::CWD, path, 0o600) {
        Ok(file) => {
            room::write_in_place(&file);
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io("make the catalog", path, e)),
    }
}
