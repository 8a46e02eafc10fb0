//! Rows of front ends' snapshots.

use super::{layer_id, nanoseconds, time};
use crate::{Code, Error, Result, SnapshotKind, SnapshotRow};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use std::collections::BTreeMap;
use vellum_types::LayerId;

const COLUMNS: &str = "SELECT s.key, s.kind, s.parent, s.layer, s.labels, s.created, s.updated \
                       FROM snapshots s JOIN layers l ON l.id = s.layer WHERE l.state = 'ready'";

fn of_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    let labels = row.get_ref(4)?.as_str()?;
    let labels = serde_json::from_str(labels).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(e))
    })?;
    Ok(SnapshotRow {
        key: row.get(0)?,
        kind: SnapshotKind::of(row.get_ref(1)?.as_str()?),
        parent: row.get(2)?,
        layer: layer_id(row, 3)?,
        labels,
        created: time(row, 5)?,
        updated: time(row, 6)?,
    })
}

/// One snapshot.
pub(crate) fn get(tx: &Transaction<'_>, namespace: &str, key: &str) -> Result<SnapshotRow> {
    find(tx, namespace, key)?.ok_or_else(|| Error::not_found("snapshot", key))
}

/// One snapshot, if there is one of this key.
pub(crate) fn find(tx: &Transaction<'_>, namespace: &str, key: &str) -> Result<Option<SnapshotRow>> {
    Ok(tx
        .prepare_cached(&format!("{COLUMNS} AND s.namespace = ?1 AND s.key = ?2"))?
        .query_row(params![namespace, key], of_row)
        .optional()?)
}

/// All snapshots of a front end, by key.
pub(crate) fn all(tx: &Transaction<'_>, namespace: &str) -> Result<Vec<SnapshotRow>> {
    let mut statement = tx.prepare_cached(&format!("{COLUMNS} AND s.namespace = ?1 ORDER BY s.key"))?;
    let rows = statement.query_map([namespace], of_row)?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// A snapshot that is to be added.
#[derive(Debug)]
pub(crate) struct NewSnapshot<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) key: &'a str,
    pub(crate) kind: SnapshotKind,
    pub(crate) parent: Option<&'a str>,
    pub(crate) layer: LayerId,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) created: Timestamp,
}

/// Adds a snapshot; it exists when its layer is ready.
pub(crate) fn add(tx: &Transaction<'_>, new: &NewSnapshot<'_>) -> Result<()> {
    free(tx, new.namespace, new.key)?;
    tx.prepare_cached(
        "INSERT INTO snapshots (namespace, key, kind, parent, layer, labels, created, updated) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
    )?
    .execute(params![
        new.namespace,
        new.key,
        new.kind.name(),
        new.parent,
        new.layer.get(),
        text(new.labels)?,
        nanoseconds(new.created),
    ])?;
    Ok(())
}

fn text(labels: &BTreeMap<String, String>) -> Result<String> {
    serde_json::to_string(labels).map_err(|e| Error::caused(Code::Invalid, "write the labels", e))
}

/// Fails if the key is taken.
pub(crate) fn free(tx: &Transaction<'_>, namespace: &str, key: &str) -> Result<()> {
    let taken: Option<i64> = tx
        .prepare_cached("SELECT 1 FROM snapshots WHERE namespace = ?1 AND key = ?2")?
        .query_row(params![namespace, key], |row| row.get(0))
        .optional()?;
    match taken {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Code::Exists,
            format!("make the snapshot '{key}'"),
            "there is a snapshot of this key",
        )),
    }
}

/// An active snapshot becomes a committed one, under another name.
pub(crate) fn commit(
    tx: &Transaction<'_>,
    namespace: &str,
    key: &str,
    name: &str,
    parent: Option<&str>,
    labels: &BTreeMap<String, String>,
) -> Result<()> {
    free(tx, namespace, name)?;
    tx.prepare_cached(
        "UPDATE snapshots SET key = ?3, kind = 'committed', parent = ?4, labels = ?5, created = ?6, \
         updated = ?6 WHERE namespace = ?1 AND key = ?2 AND kind = 'active'",
    )?
    .execute(params![namespace, key, name, parent, text(labels)?, nanoseconds(Timestamp::now())])?;
    Ok(())
}

/// Sets the labels.
pub(crate) fn set_labels(
    tx: &Transaction<'_>,
    namespace: &str,
    key: &str,
    labels: &BTreeMap<String, String>,
) -> Result<()> {
    tx.prepare_cached("UPDATE snapshots SET labels = ?3, updated = ?4 WHERE namespace = ?1 AND key = ?2")?
        .execute(params![namespace, key, text(labels)?, nanoseconds(Timestamp::now())])?;
    Ok(())
}

/// The key of a snapshot that lies on this one.
pub(crate) fn child(tx: &Transaction<'_>, namespace: &str, key: &str) -> Result<Option<String>> {
    Ok(tx
        .prepare_cached("SELECT key FROM snapshots WHERE namespace = ?1 AND parent = ?2 LIMIT 1")?
        .query_row(params![namespace, key], |row| row.get(0))
        .optional()?)
}

/// Takes the row away. The layer is the caller's.
pub(crate) fn remove(tx: &Transaction<'_>, namespace: &str, key: &str) -> Result<()> {
    tx.prepare_cached("DELETE FROM snapshots WHERE namespace = ?1 AND key = ?2")?
        .execute(params![namespace, key])?;
    Ok(())
}

/// The snapshots that are this layer, with their front ends' namespaces; more than one only of an image's layer.
pub(crate) fn of_layer(tx: &Transaction<'_>, layer: LayerId) -> Result<Vec<(String, SnapshotRow)>> {
    let mut statement = tx.prepare_cached(
        "SELECT key, kind, parent, layer, labels, created, updated, namespace FROM snapshots \
         WHERE layer = ?1 ORDER BY namespace, key",
    )?;
    let rows = statement.query_map([layer.get()], |row| Ok((row.get(7)?, of_row(row)?)))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// An active snapshot becomes a committed one under its own key.
pub(crate) fn seal(tx: &Transaction<'_>, namespace: &str, key: &str) -> Result<()> {
    tx.prepare_cached(
        "UPDATE snapshots SET kind = 'committed', updated = ?3 WHERE namespace = ?1 AND key = ?2 AND kind = 'active'",
    )?
    .execute(params![namespace, key, nanoseconds(Timestamp::now())])?;
    Ok(())
}

/// A snapshot has another, committed layer from now on.
pub(crate) fn fill(tx: &Transaction<'_>, namespace: &str, key: &str, layer: LayerId) -> Result<()> {
    tx.prepare_cached(
        "UPDATE snapshots SET kind = 'committed', layer = ?3, updated = ?4 WHERE namespace = ?1 AND key = ?2",
    )?
    .execute(params![namespace, key, layer.get(), nanoseconds(Timestamp::now())])?;
    Ok(())
}
