//! Rows of layers.

use super::{integer, layer_id, layer_id_or_none, nanoseconds, parsed_or_none, size, time};
use crate::locks::OwnerId;
use crate::{BlobFacts, Code, Error, Result};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use std::collections::BTreeSet;
use vellum_archive::target::Usage;
use vellum_types::{ChainId, DiffId, Digest, LayerId};

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Image,
    Container,
    Save,
    Snapshot,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Container => "container",
            Self::Save => "save",
            Self::Snapshot => "snapshot",
        }
    }

    fn of(name: &str) -> Self {
        match name {
            "image" => Self::Image,
            "container" => Self::Container,
            "save" => Self::Save,
            _ => Self::Snapshot,
        }
    }
}

/// Where a layer is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Staging,
    Ready,
    Removing,
}

impl State {
    fn of(name: &str) -> Self {
        match name {
            "staging" => Self::Staging,
            "ready" => Self::Ready,
            _ => Self::Removing,
        }
    }
}

/// A row of `layers`.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) id: LayerId,
    pub(crate) driver: String,
    pub(crate) role: Role,
    pub(crate) state: State,
    pub(crate) parent: Option<LayerId>,
    pub(crate) chain_id: Option<ChainId>,
    pub(crate) diff_id: Option<DiffId>,
    pub(crate) usage: Usage,
    pub(crate) tar_size: u64,
    /// The recorded usage of a writable layer is out of date.
    pub(crate) dirty: bool,
    /// It was made without a sync (see [`crate::fresh`]).
    pub(crate) fresh: bool,
    pub(crate) blob: Option<BlobFacts>,
    pub(crate) created: Timestamp,
    pub(crate) owner: Option<OwnerId>,
    /// The digest of the file `recipe`.
    pub(crate) recipe: Option<Digest>,
}

/// The columns of [`Layer`], in order.
const COLUMNS: &str = "id, driver, role, state, parent, chain_id, diff_id, bytes, inodes, tar_size, dirty, blob, \
                       blob_size, blob_type, created, owner, recipe, fresh";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Layer> {
    let blob: Option<Digest> = parsed_or_none(row, 11)?;
    let blob = match blob {
        None => None,
        Some(digest) => Some(BlobFacts {
            digest: Some(digest),
            size: row.get::<_, Option<i64>>(12)?.map(i64::cast_unsigned),
            media_type: row.get(13)?,
        }),
    };
    Ok(Layer {
        id: layer_id(row, 0)?,
        driver: row.get(1)?,
        role: Role::of(row.get_ref(2)?.as_str()?),
        state: State::of(row.get_ref(3)?.as_str()?),
        parent: layer_id_or_none(row, 4)?,
        chain_id: parsed_or_none(row, 5)?,
        diff_id: parsed_or_none(row, 6)?,
        usage: Usage { bytes: size(row, 7)?, inodes: size(row, 8)? },
        tar_size: size(row, 9)?,
        dirty: row.get(10)?,
        blob,
        created: time(row, 14)?,
        owner: row.get::<_, Option<i64>>(15)?.map(OwnerId),
        recipe: parsed_or_none(row, 16)?,
        fresh: row.get(17)?,
    })
}

fn query(tx: &Transaction<'_>, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Layer>> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM layers {rest}"))?;
    let rows = statement.query_map(params, of_row)?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// One layer, in any state.
pub(crate) fn get(tx: &Transaction<'_>, id: LayerId) -> Result<Option<Layer>> {
    Ok(query(tx, "WHERE id = ?1", [id.get()])?.pop())
}

/// All layers in any state, by id.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<Layer>> {
    query(tx, "ORDER BY id", [])
}

/// The drivers that keep layers.
pub(crate) fn drivers(tx: &Transaction<'_>) -> Result<Vec<String>> {
    let mut statement = tx.prepare_cached("SELECT DISTINCT driver FROM layers ORDER BY driver")?;
    let drivers = statement.query_map([], |row| row.get(0))?;
    Ok(drivers.collect::<std::result::Result<_, _>>()?)
}

/// All layers that are not ready.
pub(crate) fn not_ready(tx: &Transaction<'_>) -> Result<Vec<Layer>> {
    query(tx, "WHERE state <> 'ready' ORDER BY id DESC", [])
}

/// The layer of this chain ID that is being made or ready.
pub(crate) fn by_chain(tx: &Transaction<'_>, driver: &str, chain: &ChainId) -> Result<Option<Layer>> {
    Ok(query(
        tx,
        "WHERE driver = ?1 AND chain_id = ?2 AND state <> 'removing'",
        params![driver, chain.to_string()],
    )?
    .pop())
}

/// The layers of an image, the base first.
pub(crate) fn of_image(tx: &Transaction<'_>, driver: &str, image: &str) -> Result<Vec<Layer>> {
    query(
        tx,
        "JOIN (SELECT layer AS lid, position FROM image_layers WHERE driver = ?1 AND image = ?2) \
         ON lid = id ORDER BY position",
        params![driver, image],
    )
}

/// An intent: a new id, and a row that says what is being made under it.
pub(crate) fn stage(
    tx: &Transaction<'_>,
    driver: &str,
    role: Role,
    owner: OwnerId,
    parent: Option<LayerId>,
    chain: Option<(&ChainId, &DiffId)>,
) -> Result<LayerId> {
    let id = next_id(tx)?;
    tx.prepare_cached(
        "INSERT INTO layers (id, driver, role, state, parent, chain_id, diff_id, created, owner) \
         VALUES (?1, ?2, ?3, 'staging', ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        id.get(),
        driver,
        role.name(),
        parent.map(LayerId::get),
        chain.map(|(chain, _)| chain.to_string()),
        chain.map(|(_, diff)| diff.to_string()),
        nanoseconds(Timestamp::now()),
        owner.0,
    ])?;
    Ok(id)
}

/// A writable layer or a view that is ready by the time the transaction is, and whose files are not synced.
pub(crate) fn add_fresh(
    tx: &Transaction<'_>,
    driver: &str,
    role: Role,
    parent: Option<LayerId>,
) -> Result<LayerId> {
    let id = next_id(tx)?;
    tx.prepare_cached(
        "INSERT INTO layers (id, driver, role, state, parent, dirty, fresh, created) \
         VALUES (?1, ?2, ?3, 'ready', ?4, 1, 1, ?5)",
    )?
    .execute(params![
        id.get(),
        driver,
        role.name(),
        parent.map(LayerId::get),
        nanoseconds(Timestamp::now()),
    ])?;
    Ok(id)
}

/// All layers that were made without a sync and not known to be on the disk since.
pub(crate) fn fresh(tx: &Transaction<'_>) -> Result<Vec<Layer>> {
    query(tx, "WHERE fresh AND state = 'ready' ORDER BY id", [])
}

/// The layer is on the disk by now.
pub(crate) fn settled(tx: &Transaction<'_>, id: LayerId) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET fresh = 0 WHERE id = ?1")?.execute([id.get()])?;
    Ok(())
}

fn next_id(tx: &Transaction<'_>) -> Result<LayerId> {
    let last: u32 = super::schema::get(tx, "last_layer")?.and_then(|text| text.parse().ok()).unwrap_or(0);
    let id = LayerId::new(last + 1).ok_or_else(|| {
        Error::new(
            Code::Unsupported,
            "name a new layer",
            "all two thousand million names of this store are used up",
        )
    })?;
    super::schema::set(tx, "last_layer", &id.get().to_string())?;
    Ok(id)
}

/// What is known of a layer when it is ready.
#[derive(Debug, Clone)]
pub(crate) struct Finish<'a> {
    pub(crate) id: LayerId,
    pub(crate) parent: Option<LayerId>,
    pub(crate) chain: Option<(&'a ChainId, &'a DiffId)>,
    pub(crate) usage: Usage,
    pub(crate) tar_size: u64,
    pub(crate) recipe: Option<&'a Digest>,
    pub(crate) blob: Option<&'a BlobFacts>,
}

/// The layer is there. Fails if its intent is gone.
pub(crate) fn finish(tx: &Transaction<'_>, layer: &Finish<'_>) -> Result<()> {
    let changed = tx
        .prepare_cached(
            "UPDATE layers SET state = 'ready', owner = NULL, parent = ?2, chain_id = ?3, diff_id = ?4, bytes = ?5, \
             inodes = ?6, tar_size = ?7, blob = ?8, blob_size = ?9, blob_type = ?10, recipe = ?11 \
             WHERE id = ?1 AND state = 'staging'",
        )?
        .execute(params![
            layer.id.get(),
            layer.parent.map(LayerId::get),
            layer.chain.map(|(chain, _)| chain.to_string()),
            layer.chain.map(|(_, diff)| diff.to_string()),
            integer(layer.usage.bytes),
            integer(layer.usage.inodes),
            integer(layer.tar_size),
            layer.blob.and_then(|b| b.digest).map(|d| d.to_string()),
            layer.blob.and_then(|b| b.size).map(integer),
            layer.blob.and_then(|b| b.media_type.as_deref()),
            layer.recipe.map(Digest::to_string),
        ])?;
    if changed == 1 {
        return Ok(());
    }
    Err(Error::new(Code::InUse, "record the layer", "its intent was rolled back by another process")
        .object(format!("layer {}", layer.id)))
}

/// The layer is on its way out: from now on nothing finds it.
pub(crate) fn remove(tx: &Transaction<'_>, id: LayerId, owner: Option<OwnerId>) -> Result<()> {
    tx.prepare_cached("DELETE FROM pins WHERE layer = ?1")?.execute([id.get()])?;
    tx.prepare_cached("UPDATE layers SET state = 'removing', owner = ?2, parent = NULL WHERE id = ?1")?
        .execute(params![id.get(), owner.map(|o| o.0)])?;
    Ok(())
}

/// The layer is off the disk.
pub(crate) fn forget(tx: &Transaction<'_>, id: LayerId) -> Result<()> {
    tx.prepare_cached("DELETE FROM layers WHERE id = ?1 AND state = 'removing'")?.execute([id.get()])?;
    Ok(())
}

/// Records a measured usage, or that the recorded one is out of date.
pub(crate) fn set_usage(tx: &Transaction<'_>, id: LayerId, usage: Option<Usage>) -> Result<()> {
    match usage {
        Some(usage) => tx
            .prepare_cached("UPDATE layers SET bytes = ?2, inodes = ?3, dirty = 0 WHERE id = ?1")?
            .execute(params![id.get(), integer(usage.bytes), integer(usage.inodes)])?,
        None => tx.prepare_cached("UPDATE layers SET dirty = 1 WHERE id = ?1")?.execute([id.get()])?,
    };
    Ok(())
}

/// Records the layer below, once it is known.
pub(crate) fn set_parent(tx: &Transaction<'_>, id: LayerId, parent: Option<LayerId>) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET parent = ?2 WHERE id = ?1")?
        .execute(params![id.get(), parent.map(LayerId::get)])?;
    Ok(())
}

/// Records the digest of a recipe that was written anew.
pub(crate) fn set_recipe(tx: &Transaction<'_>, id: LayerId, recipe: &Digest) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET recipe = ?2 WHERE id = ?1")?
        .execute(params![id.get(), recipe.to_string()])?;
    Ok(())
}

/// Records the digest of the tar of a layer that has no chain ID, because it is no image's.
pub(crate) fn set_diff(tx: &Transaction<'_>, id: LayerId, diff: &DiffId) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET diff_id = ?2 WHERE id = ?1")?
        .execute(params![id.get(), diff.to_string()])?;
    Ok(())
}

/// Records the blob that a layer came in.
pub(crate) fn set_blob(tx: &Transaction<'_>, id: LayerId, blob: &BlobFacts) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET blob = ?2, blob_size = ?3, blob_type = ?4 WHERE id = ?1")?.execute(
        params![
            id.get(),
            blob.digest.map(|d| d.to_string()),
            blob.size.map(integer),
            blob.media_type.as_deref(),
        ],
    )?;
    Ok(())
}

/// Whether anything needs the layer: an image, a container, a save point, a front end's snapshot, a layer on top of it, or an
/// operation at work (`lives` says which of those that pinned it do).
pub(crate) fn needed(
    tx: &Transaction<'_>,
    id: LayerId,
    lives: &mut dyn FnMut(OwnerId) -> Result<bool>,
) -> Result<bool> {
    let held: Option<i64> = tx
        .prepare_cached(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM image_layers WHERE layer = ?1) \
             OR EXISTS (SELECT 1 FROM containers WHERE layer = ?1) \
             OR EXISTS (SELECT 1 FROM save_points WHERE layer = ?1) \
             OR EXISTS (SELECT 1 FROM snapshots WHERE layer = ?1) \
             OR EXISTS (SELECT 1 FROM layers WHERE parent = ?1)",
        )?
        .query_row([id.get()], |row| row.get(0))
        .optional()?;
    if held.is_some() {
        return Ok(true);
    }
    for owner in super::intents::pinned_by(tx, id)? {
        if lives(owner)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Goes down from `top` to the base; `visit` gets each layer, or that there is no row of it, and says whether to go on.
pub(crate) fn descend(
    tx: &Transaction<'_>,
    top: Option<LayerId>,
    visit: &mut dyn FnMut(LayerId, Option<&Layer>) -> Result<bool>,
) -> Result<()> {
    let (mut next, mut seen) = (top, BTreeSet::new());
    while let Some(id) = next {
        if !seen.insert(id) {
            return Err(Error::new(Code::Damaged, "follow the parents of a layer", "they go in a circle")
                .object(format!("layer {id}"))
                .with_hint("`vellum check --repair` mends what can be mended"));
        }
        let layer = get(tx, id)?;
        if !visit(id, layer.as_ref())? {
            break;
        }
        next = layer.and_then(|layer| layer.parent);
    }
    Ok(())
}

/// Goes down the chain from `top` and takes away each layer that nothing needs any more, until one that is needed.
/// Gives those that are now to be removed from the disk.
pub(crate) fn release_chain(
    tx: &Transaction<'_>,
    top: Option<LayerId>,
    owner: OwnerId,
    lives: &mut dyn FnMut(OwnerId) -> Result<bool>,
) -> Result<Vec<Layer>> {
    let mut released = Vec::new();
    let mut next = top;
    while let Some(id) = next {
        let Some(layer) = get(tx, id)? else { break };
        if layer.state != State::Ready || layer.role != Role::Image || needed(tx, id, lives)? {
            break;
        }
        next = layer.parent;
        remove(tx, id, Some(owner))?;
        released.push(layer);
    }
    Ok(released)
}

/// Forgets a blob that is not there any more.
pub(crate) fn forget_blob(tx: &Transaction<'_>, digest: &Digest) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET blob = NULL, blob_size = NULL, blob_type = NULL WHERE blob = ?1")?
        .execute([digest.to_string()])?;
    Ok(())
}

/// A row as a layer's file tells it, for a catalog that is rebuilt. The parent is set when all rows are there.
pub(crate) fn restore(
    tx: &Transaction<'_>,
    id: LayerId,
    driver: &str,
    file: &crate::layerfiles::LayerFile,
) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO layers (id, driver, role, state, chain_id, diff_id, bytes, inodes, tar_size, dirty, created) \
         VALUES (?1, ?2, ?3, 'ready', ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        id.get(),
        driver,
        file.role.name(),
        file.chain_id.map(|chain| chain.to_string()),
        file.diff_id.map(|diff| diff.to_string()),
        integer(file.usage.bytes),
        integer(file.usage.inodes),
        integer(file.tar_size),
        file.role != Role::Image,
        nanoseconds(file.created),
    ])?;
    if let Some(recipe) = &file.recipe {
        set_recipe(tx, id, recipe)?;
    }
    match &file.blob {
        Some(blob) => set_blob(tx, id, &blob.facts()),
        None => Ok(()),
    }
}

/// Layers that an image, a container, a save point or a front end's snapshot holds.
pub(crate) fn held(tx: &Transaction<'_>) -> Result<Vec<LayerId>> {
    let mut statement = tx.prepare_cached(
        "SELECT layer FROM image_layers UNION SELECT layer FROM containers UNION SELECT layer FROM save_points \
         UNION SELECT layer FROM snapshots",
    )?;
    let rows = statement.query_map([], |row| layer_id(row, 0))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// The names of the blobs that layers came in.
pub(crate) fn blobs(tx: &Transaction<'_>) -> Result<std::collections::BTreeSet<String>> {
    let mut statement =
        tx.prepare_cached("SELECT blob FROM layers WHERE blob IS NOT NULL AND state <> 'removing'")?;
    let rows = statement.query_map([], |row| super::parsed::<Digest>(row, 0).map(|digest| digest.hex()))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}
