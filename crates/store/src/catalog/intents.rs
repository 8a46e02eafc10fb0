//! Operations at work: what they pinned, and what they left when they died.

use super::layers::{self, Layer};
use crate::Result;
use crate::locks::OwnerId;
use rusqlite::{Transaction, params};
use vellum_types::LayerId;

/// Keeps the layer from being collected while the operation lives.
pub(crate) fn pin(tx: &Transaction<'_>, owner: OwnerId, layer: LayerId) -> Result<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO pins (owner, layer) VALUES (?1, ?2)")?
        .execute(params![owner.0, layer.get()])?;
    Ok(())
}

/// The operation needs its pins no more.
pub(crate) fn unpin(tx: &Transaction<'_>, owner: OwnerId) -> Result<()> {
    tx.prepare_cached("DELETE FROM pins WHERE owner = ?1")?.execute([owner.0])?;
    Ok(())
}

/// Who pinned a layer.
pub(crate) fn pinned_by(tx: &Transaction<'_>, layer: LayerId) -> Result<Vec<OwnerId>> {
    let mut statement = tx.prepare_cached("SELECT owner FROM pins WHERE layer = ?1")?;
    let rows = statement.query_map([layer.get()], |row| row.get(0).map(OwnerId))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// All pins.
pub(crate) fn pins(tx: &Transaction<'_>) -> Result<Vec<(OwnerId, LayerId)>> {
    let mut statement = tx.prepare_cached("SELECT owner, layer FROM pins")?;
    let rows = statement.query_map([], |row| Ok((OwnerId(row.get(0)?), super::layer_id(row, 1)?)))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// Every operation that the catalog knows of, dead or alive.
pub(crate) fn owners(tx: &Transaction<'_>) -> Result<Vec<OwnerId>> {
    let mut statement = tx.prepare_cached(
        "SELECT owner FROM pins UNION SELECT coalesce(owner, -1) FROM layers WHERE state <> 'ready'",
    )?;
    let rows = statement.query_map([], |row| row.get(0).map(OwnerId))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// Rolls back what a dead operation left: its intents become removals by `by`, its pins go. Gives what must now leave the disk.
pub(crate) fn take_over(tx: &Transaction<'_>, dead: OwnerId, by: OwnerId) -> Result<Vec<Layer>> {
    unpin(tx, dead)?;
    let mut left = Vec::new();
    for layer in layers::not_ready(tx)? {
        // One that is to take a damaged layer's place does so ([`crate::mend`]).
        if (layer.owner == Some(dead) || (layer.owner.is_none() && dead.0 == -1))
            && !super::damage::is_successor(tx, layer.id)?
        {
            abandon(tx, layer.id, by)?;
            left.push(layer);
        }
    }
    Ok(left)
}

/// Turns the intent for a layer into its removal, together with what was to be made of it.
pub(crate) fn abandon(tx: &Transaction<'_>, layer: LayerId, by: OwnerId) -> Result<()> {
    for table in ["save_points", "snapshots", "containers"] {
        tx.prepare_cached(&format!("DELETE FROM {table} WHERE layer = ?1"))?.execute([layer.get()])?;
    }
    layers::remove(tx, layer, Some(by))
}
