//! The catalog's tables and its format.
//!
//! The file says what it is by SQLite's `application_id`, and how its tables look by `user_version`, which only a
//! migration raises. What the *store* on disk needs a program to know is said by three sets of feature names in
//! `meta`, as ext4 does it:
//!
//! | set | a program that does not know one of its names |
//! |---|---|
//! | `compat` | may do everything |
//! | `ro_compat` | may only read |
//! | `incompat` | must keep off |

use crate::{Code, Error, Result};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use std::collections::BTreeMap;

/// "Vllm".
pub(crate) const APPLICATION_ID: i32 = 0x566c_6c6d;
/// The tables below.
pub(crate) const VERSION: i32 = 1;

/// In `incompat`: the data lies in a pool, which must be mounted first.
pub(crate) const POOL: &str = "pool";

/// What this program knows of the three sets.
const COMPAT: &[&str] = &[];
const RO_COMPAT: &[&str] = &[];
const INCOMPAT: &[&str] = &[POOL];

const TABLES: &str = "
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Layers of every kind. `parent` is set by the time the layer is ready; `owner` is the operation that made the intent
-- (staging) or the removal; `bytes` and `inodes` are what it takes by itself (of a writable layer: as last
-- measured, and wrong when `dirty`). A `fresh` one was made without a sync: what a power cut took of it is made again.
CREATE TABLE layers (
    id       INTEGER PRIMARY KEY,
    driver   TEXT    NOT NULL,
    role     TEXT    NOT NULL CHECK (role IN ('image', 'container', 'save', 'snapshot')),
    state    TEXT    NOT NULL CHECK (state IN ('staging', 'ready', 'removing')),
    parent   INTEGER REFERENCES layers (id),
    chain_id TEXT,
    diff_id  TEXT,
    bytes    INTEGER NOT NULL DEFAULT 0,
    inodes   INTEGER NOT NULL DEFAULT 0,
    tar_size INTEGER NOT NULL DEFAULT 0,
    dirty    INTEGER NOT NULL DEFAULT 0,
    fresh    INTEGER NOT NULL DEFAULT 0,
    recipe   TEXT,
    blob     TEXT,
    blob_size INTEGER,
    blob_type TEXT,
    created  INTEGER NOT NULL,
    owner    INTEGER
) STRICT;
CREATE UNIQUE INDEX layers_by_chain ON layers (driver, chain_id) WHERE chain_id IS NOT NULL AND state <> 'removing';
CREATE INDEX layers_by_parent ON layers (parent) WHERE parent IS NOT NULL;
CREATE INDEX layers_not_ready ON layers (owner) WHERE state <> 'ready';
CREATE INDEX layers_by_blob ON layers (blob) WHERE blob IS NOT NULL;

-- Layers that an operation at work must find again when it ends.
CREATE TABLE pins (
    owner INTEGER NOT NULL,
    layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    PRIMARY KEY (owner, layer)
) STRICT, WITHOUT ROWID;
CREATE INDEX pins_by_layer ON pins (layer);

CREATE TABLE images (
    driver   TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    created  INTEGER,
    platform TEXT,
    manifest BLOB,
    added    INTEGER NOT NULL,
    PRIMARY KEY (driver, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE image_layers (
    driver   TEXT    NOT NULL,
    image    TEXT    NOT NULL,
    position INTEGER NOT NULL,
    layer    INTEGER NOT NULL REFERENCES layers (id),
    PRIMARY KEY (driver, image, position),
    FOREIGN KEY (driver, image) REFERENCES images (driver, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_by_layer ON image_layers (layer);
CREATE TABLE names (
    driver TEXT NOT NULL,
    name   TEXT NOT NULL,
    image  TEXT NOT NULL,
    PRIMARY KEY (driver, name),
    FOREIGN KEY (driver, image) REFERENCES images (driver, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_image ON names (driver, image);

-- A container exists when its layer is ready. It keeps the image's id, whether or not the image is still there.
CREATE TABLE containers (
    id      TEXT    PRIMARY KEY,
    name    TEXT    UNIQUE,
    image   TEXT    NOT NULL,
    layer   INTEGER NOT NULL REFERENCES layers (id),
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX containers_by_layer ON containers (layer);
CREATE TABLE save_points (
    container TEXT    NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    name      TEXT    NOT NULL,
    layer     INTEGER NOT NULL REFERENCES layers (id),
    created   INTEGER NOT NULL,
    PRIMARY KEY (container, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX save_points_by_layer ON save_points (layer);

-- Layers that are known to be damaged. `successor` is the sound layer that takes the place of one, from when that is decided until
-- it is done.
CREATE TABLE damaged (
    layer     INTEGER PRIMARY KEY REFERENCES layers (id) ON DELETE CASCADE,
    detail    TEXT    NOT NULL,
    found     INTEGER NOT NULL,
    successor INTEGER REFERENCES layers (id)
) STRICT;

-- What other front ends hold (containerd's and docker's snapshots). `labels` is JSON.
CREATE TABLE snapshots (
    namespace TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
    parent    TEXT,
    layer     INTEGER NOT NULL REFERENCES layers (id),
    labels    TEXT    NOT NULL,
    created   INTEGER NOT NULL,
    updated   INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_by_layer ON snapshots (layer);
CREATE INDEX snapshots_by_parent ON snapshots (namespace, parent) WHERE parent IS NOT NULL;
";

/// Makes the tables, unless another process has just made them.
pub(crate) fn create(connection: &mut Connection, meta: &[(&str, String)]) -> Result<()> {
    connection.pragma_update(None, "page_size", 4096)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let there: i32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if there == 0 {
        tx.execute_batch(TABLES)?;
        for (key, value) in meta {
            set(&tx, key, value)?;
        }
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    }
    tx.commit()?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(())
}

/// What a store must be opened as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything is known.
    Full,
    /// This feature is not known, and changing the store would break it.
    ReadOnly(String),
}

/// Looks whether this program may open the store.
pub(crate) fn access(tx: &Transaction<'_>) -> Result<Access> {
    let refuse = |reason: String| {
        Err(Error::new(Code::Unsupported, "open the store", reason)
            .with_hint("use the release of vellum that made it, or a newer one"))
    };
    let id: i32 = tx.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if id != APPLICATION_ID {
        return Err(Error::new(Code::Invalid, "open the store", "catalog.db is not a catalog of Vellum"));
    }
    if version > VERSION {
        return refuse(format!("its format is {version}, and this program knows up to {VERSION}"));
    }
    let meta = all(tx)?;
    let unknown = |set: &str, known: &[&str]| -> Option<String> {
        let names = meta.get(set)?;
        names.split(',').find(|name| !name.is_empty() && !known.contains(name)).map(str::to_owned)
    };
    if let Some(name) = unknown("incompat", INCOMPAT) {
        return refuse(format!("it uses '{name}', which this program does not know"));
    }
    // Names in `compat` need not be known; they are kept as they are.
    let _ = COMPAT;
    Ok(match unknown("ro_compat", RO_COMPAT) {
        Some(name) => Access::ReadOnly(format!("it uses '{name}', which this program can only read around")),
        None => Access::Full,
    })
}

/// All of `meta`.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<BTreeMap<String, String>> {
    let mut statement = tx.prepare_cached("SELECT key, value FROM meta")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// One value of `meta`.
pub(crate) fn get(tx: &Transaction<'_>, key: &str) -> Result<Option<String>> {
    let mut statement = tx.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// Sets one value of `meta`.
pub(crate) fn set(tx: &Transaction<'_>, key: &str, value: &str) -> Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value])?;
    Ok(())
}

/// Whether one of the three sets has a name.
pub(crate) fn has(meta: &BTreeMap<String, String>, set: &str, name: &str) -> bool {
    meta.get(set).is_some_and(|names| names.split(',').any(|one| one == name))
}

/// Puts a name into one of the three sets, or takes it out.
pub(crate) fn set_feature(tx: &Transaction<'_>, set_name: &str, name: &str, wanted: bool) -> Result<()> {
    let now = get(tx, set_name)?.unwrap_or_default();
    let others = now.split(',').filter(|one| !one.is_empty() && *one != name);
    let names: Vec<&str> = others.chain(wanted.then_some(name)).collect();
    set(tx, set_name, &names.join(","))
}

/// What the store has of its own: how many, and what they are.
pub(crate) fn contents(tx: &Transaction<'_>) -> Result<Vec<(usize, &'static str)>> {
    let mut found = Vec::new();
    for (table, what) in [("images", "images"), ("containers", "containers"), ("layers", "layers")] {
        let count: i64 = tx.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
        if count > 0 {
            found.push((usize::try_from(count).unwrap_or(usize::MAX), what));
        }
    }
    Ok(found)
}
