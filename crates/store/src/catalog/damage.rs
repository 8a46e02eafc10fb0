//! Layers that are known to be damaged, and what takes their place.

use super::{layer_id, layer_id_or_none, layers, nanoseconds};
use crate::{Code, Error, Result};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Transaction, params};
use vellum_types::LayerId;

/// A layer that a check, a save or a load found damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) layer: LayerId,
    /// What was found first.
    pub(crate) detail: String,
    /// The sound layer that takes its place, from when that is decided until it is done.
    pub(crate) successor: Option<LayerId>,
}

fn query(tx: &Transaction<'_>, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Damage>> {
    let mut statement = tx.prepare_cached(&format!("SELECT layer, detail, successor FROM damaged {rest}"))?;
    let rows = statement.query_map(params, |row| {
        Ok(Damage { layer: layer_id(row, 0)?, detail: row.get(1)?, successor: layer_id_or_none(row, 2)? })
    })?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// All that is known.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<Damage>> {
    query(tx, "ORDER BY layer", [])
}

/// What is known of one layer.
pub(crate) fn of(tx: &Transaction<'_>, layer: LayerId) -> Result<Option<Damage>> {
    Ok(query(tx, "WHERE layer = ?1", [layer.get()])?.pop())
}

/// Replacements that were decided and not finished.
pub(crate) fn pending(tx: &Transaction<'_>) -> Result<Vec<Damage>> {
    query(tx, "WHERE successor IS NOT NULL ORDER BY layer", [])
}

/// Notes that a layer is damaged; what was noted first stays.
pub(crate) fn note(tx: &Transaction<'_>, layer: LayerId, detail: &str) -> Result<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO damaged (layer, detail, found) VALUES (?1, ?2, ?3)")?
        .execute(params![layer.get(), detail, nanoseconds(Timestamp::now())])?;
    Ok(())
}

/// The layer is sound (again).
pub(crate) fn clear(tx: &Transaction<'_>, layer: LayerId) -> Result<()> {
    tx.prepare_cached("DELETE FROM damaged WHERE layer = ?1")?.execute([layer.get()])?;
    Ok(())
}

/// Decides, or takes back, that `successor` takes the layer's place. Fails if the note is gone.
pub(crate) fn set_successor(tx: &Transaction<'_>, layer: LayerId, successor: Option<LayerId>) -> Result<()> {
    tx.prepare_cached("UPDATE damaged SET successor = ?2 WHERE layer = ?1")?
        .execute(params![layer.get(), successor.map(LayerId::get)])?;
    Ok(())
}

/// Whether the layer is about to take another's place.
pub(crate) fn is_successor(tx: &Transaction<'_>, layer: LayerId) -> Result<bool> {
    let found: Option<i64> = tx
        .prepare_cached("SELECT 1 FROM damaged WHERE successor = ?1")?
        .query_row([layer.get()], |row| row.get(0))
        .optional()?;
    Ok(found.is_some())
}

/// What is known to be damaged of `top` and the layers below it, the nearest first. Mostly nothing is, which is one look-up.
pub(crate) fn below(tx: &Transaction<'_>, top: Option<LayerId>) -> Result<Vec<Damage>> {
    let known = all(tx)?;
    let mut found = Vec::new();
    layers::descend(tx, if known.is_empty() { None } else { top }, &mut |id, _| {
        found.extend(known.iter().filter(|damage| damage.layer == id).cloned());
        Ok(true)
    })?;
    Ok(found)
}

/// Nothing new is made of layers that are known to be damaged.
pub(crate) fn refuse(tx: &Transaction<'_>, top: Option<LayerId>, operation: &str) -> Result<()> {
    match below(tx, top)?.first() {
        None => Ok(()),
        Some(damage) => Err(Error::new(
            Code::Damaged,
            operation,
            format!("layer {} of the image is damaged: {}", damage.layer, damage.detail),
        )
        .with_hint(crate::mend::HINT)),
    }
}
