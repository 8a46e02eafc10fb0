//! Rows of images and names.

use super::{layers, nanoseconds, parsed, parsed_or_none};
use crate::locks::OwnerId;
use crate::{Code, Error, ImageRow, Result};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use std::collections::BTreeSet;
use vellum_types::{ImageId, ImageName, LayerId, Platform};

/// What is recorded of an image that is to be added.
#[derive(Debug)]
pub(crate) struct NewImage<'a> {
    pub(crate) driver: &'a str,
    pub(crate) id: ImageId,
    pub(crate) created: Option<Timestamp>,
    pub(crate) platform: Option<&'a Platform>,
    pub(crate) manifest: Option<&'a [u8]>,
    pub(crate) added: Timestamp,
    /// The base first.
    pub(crate) layers: &'a [LayerId],
}

/// Adds an image. One that is there keeps its names, and takes the manifest if it had none.
pub(crate) fn add(tx: &Transaction<'_>, image: &NewImage<'_>) -> Result<()> {
    let id = image.id.to_string();
    tx.prepare_cached(
        "INSERT INTO images (driver, id, created, platform, manifest, added) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT DO UPDATE SET manifest = coalesce(manifest, excluded.manifest)",
    )?
    .execute(params![
        image.driver,
        id,
        // A time that the catalog cannot keep is as good as unknown.
        image.created.and_then(|created| i64::try_from(created.as_nanosecond()).ok()),
        image.platform.map(Platform::to_string),
        image.manifest,
        nanoseconds(image.added),
    ])?;
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO image_layers (driver, image, position, layer) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for (position, layer) in image.layers.iter().enumerate() {
        insert.execute(params![
            image.driver,
            id,
            i64::try_from(position).unwrap_or(i64::MAX),
            layer.get()
        ])?;
    }
    Ok(())
}

/// Points a name at an image, and gives the image that had it before.
pub(crate) fn tag(
    tx: &Transaction<'_>,
    driver: &str,
    image: &ImageId,
    name: &ImageName,
) -> Result<Option<ImageId>> {
    let before = named(tx, driver, name)?;
    tx.prepare_cached(
        "INSERT INTO names (driver, name, image) VALUES (?1, ?2, ?3) \
         ON CONFLICT DO UPDATE SET image = excluded.image",
    )?
    .execute(params![driver, name.to_string(), image.to_string()])?;
    Ok(before.filter(|before| before != image))
}

/// Takes a name away.
pub(crate) fn untag(tx: &Transaction<'_>, driver: &str, name: &ImageName) -> Result<()> {
    tx.prepare_cached("DELETE FROM names WHERE driver = ?1 AND name = ?2")?
        .execute(params![driver, name.to_string()])?;
    Ok(())
}

/// The image of a name.
pub(crate) fn named(tx: &Transaction<'_>, driver: &str, name: &ImageName) -> Result<Option<ImageId>> {
    Ok(tx
        .prepare_cached("SELECT image FROM names WHERE driver = ?1 AND name = ?2")?
        .query_row(params![driver, name.to_string()], |row| parsed(row, 0))
        .optional()?)
}

/// The names of an image, sorted.
pub(crate) fn names_of(tx: &Transaction<'_>, driver: &str, image: &str) -> Result<Vec<ImageName>> {
    let mut statement =
        tx.prepare_cached("SELECT name FROM names WHERE driver = ?1 AND image = ?2 ORDER BY name")?;
    let rows = statement.query_map(params![driver, image], |row| parsed(row, 0))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// The columns of [`of_row`], for one driver (?1). Sizes come from the layers' rows: a layer is shared when another image
/// has it too.
const COLUMNS: &str = "
    SELECT i.id, i.created, i.platform,
           count(l.id), coalesce(sum(l.bytes), 0),
           coalesce(sum(CASE WHEN (SELECT count(*) FROM image_layers o WHERE o.layer = l.id) > 1
                             THEN l.bytes END), 0),
           (SELECT count(*) FROM containers c JOIN layers cl ON cl.id = c.layer
             WHERE c.image = i.id AND cl.driver = i.driver AND cl.state = 'ready')
      FROM images i
      LEFT JOIN image_layers il ON il.driver = i.driver AND il.image = i.id
      LEFT JOIN layers l ON l.id = il.layer
     WHERE i.driver = ?1";

fn of_row(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    let created: Option<i64> = row.get(1)?;
    let size = super::size(row, 4)?;
    let shared = super::size(row, 5)?;
    let platform: Option<Platform> = parsed_or_none(row, 2)?;
    Ok(ImageRow {
        id: parsed(row, 0)?,
        names: Vec::new(),
        // The end of time is what such a time was once kept as.
        created: created
            .filter(|ns| *ns < i64::MAX)
            .and_then(|ns| Timestamp::from_nanosecond(i128::from(ns)).ok()),
        size,
        shared,
        unique: size.saturating_sub(shared),
        platform,
        layers: row.get::<_, i64>(3)?.try_into().unwrap_or(0),
        containers: row.get::<_, i64>(6)?.try_into().unwrap_or(0),
    })
}

/// Images of a driver, the newest first.
pub(crate) fn all(tx: &Transaction<'_>, driver: &str) -> Result<Vec<ImageRow>> {
    let mut statement =
        tx.prepare_cached(&format!("{COLUMNS} GROUP BY i.id ORDER BY i.created DESC, i.id"))?;
    let mut images: Vec<ImageRow> =
        statement.query_map([driver], of_row)?.collect::<std::result::Result<_, _>>()?;
    for image in &mut images {
        image.names = names_of(tx, driver, &image.id.to_string())?;
    }
    Ok(images)
}

/// Whether there is such an image.
pub(crate) fn exists(tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<bool> {
    let found: Option<i64> = tx
        .prepare_cached("SELECT 1 FROM images WHERE driver = ?1 AND id = ?2")?
        .query_row(params![driver, id.to_string()], |row| row.get(0))
        .optional()?;
    Ok(found.is_some())
}

/// The image's topmost layer; `None` for an image without layers.
pub(crate) fn top(tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<Option<LayerId>> {
    Ok(tx
        .prepare_cached(
            "SELECT layer FROM image_layers WHERE driver = ?1 AND image = ?2 ORDER BY position DESC LIMIT 1",
        )?
        .query_row(params![driver, id.to_string()], |row| super::layer_id(row, 0))
        .optional()?)
}

/// The topmost layers of all images of a driver.
pub(crate) fn tops(tx: &Transaction<'_>, driver: &str) -> Result<BTreeSet<LayerId>> {
    let mut statement = tx.prepare_cached(
        "SELECT layer FROM image_layers il WHERE driver = ?1 AND position = \
         (SELECT max(position) FROM image_layers o WHERE o.driver = il.driver AND o.image = il.image)",
    )?;
    let tops = statement.query_map([driver], |row| super::layer_id(row, 0))?;
    Ok(tops.collect::<std::result::Result<_, _>>()?)
}

/// One image.
pub(crate) fn get(tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<Option<ImageRow>> {
    let id = id.to_string();
    let mut statement = tx.prepare_cached(&format!("{COLUMNS} AND i.id = ?2 GROUP BY i.id"))?;
    let Some(mut image) = statement.query_row(params![driver, id], of_row).optional()? else {
        return Ok(None);
    };
    image.names = names_of(tx, driver, &id)?;
    Ok(Some(image))
}

/// By name, id, or unambiguous beginning of an id, with or without the algorithm.
pub(crate) fn find(tx: &Transaction<'_>, driver: &str, reference: &str) -> Result<ImageRow> {
    let id = resolve(tx, driver, reference)?;
    get(tx, driver, &id)?.ok_or_else(|| Error::not_found("image", reference))
}

/// As [`find`], the id alone.
pub(crate) fn resolve(tx: &Transaction<'_>, driver: &str, reference: &str) -> Result<ImageId> {
    let missing = || Error::not_found("image", reference).with_hint("`vellum images` lists what there is");
    if let Ok(name) = reference.parse::<ImageName>()
        && let Some(id) = named(tx, driver, &name)?
    {
        return Ok(id);
    }
    let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
    if hex.is_empty()
        || hex.len() > 64
        || !hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    {
        return Err(missing());
    }
    let mut statement =
        tx.prepare_cached("SELECT id FROM images WHERE driver = ?1 AND id >= ?2 AND id < ?3 LIMIT 2")?;
    // 'g' follows the last digit.
    let found: Vec<ImageId> = statement
        .query_map(params![driver, format!("sha256:{hex}"), format!("sha256:{hex}g")], |row| parsed(row, 0))?
        .collect::<std::result::Result<_, _>>()?;
    match found[..] {
        [] => Err(missing()),
        [id] => Ok(id),
        _ => Err(Error::new(
            Code::Invalid,
            format!("find the image '{reference}'"),
            "several images' ids begin with that",
        )
        .with_hint("write more digits")),
    }
}

/// The manifest an image came with.
pub(crate) fn manifest(tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<Option<Vec<u8>>> {
    Ok(tx
        .prepare_cached("SELECT manifest FROM images WHERE driver = ?1 AND id = ?2")?
        .query_row(params![driver, id.to_string()], |row| row.get(0))
        .optional()?
        .flatten())
}

/// Takes an image away, and of its layers those that nothing needs any more.
pub(crate) fn remove(
    tx: &Transaction<'_>,
    driver: &str,
    id: &ImageId,
    owner: OwnerId,
    lives: &mut dyn FnMut(OwnerId) -> Result<bool>,
) -> Result<Vec<layers::Layer>> {
    let top = layers::of_image(tx, driver, &id.to_string())?.last().map(|layer| layer.id);
    tx.prepare_cached("DELETE FROM images WHERE driver = ?1 AND id = ?2")?
        .execute(params![driver, id.to_string()])?;
    layers::release_chain(tx, top, owner, lives)
}

/// (driver, id) of every image.
pub(crate) fn every(tx: &Transaction<'_>) -> Result<Vec<(String, ImageId)>> {
    let mut statement = tx.prepare_cached("SELECT driver, id FROM images ORDER BY driver, id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, parsed(row, 1)?)))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// When an image came into the store.
pub(crate) fn added(tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<Option<Timestamp>> {
    Ok(tx
        .prepare_cached("SELECT added FROM images WHERE driver = ?1 AND id = ?2")?
        .query_row(params![driver, id.to_string()], |row| super::time(row, 0))
        .optional()?)
}

/// Whether an image or a container needs this configuration.
pub(crate) fn config_needed(tx: &Transaction<'_>, image: &ImageId) -> Result<bool> {
    let mut statement = tx.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM images WHERE id = ?1) OR EXISTS (SELECT 1 FROM containers WHERE image = ?1)",
    )?;
    Ok(statement.query_row([image.to_string()], |row| row.get(0))?)
}

/// The names of the configurations that images and containers need (a container's image may be gone).
pub(crate) fn configs_needed(tx: &Transaction<'_>) -> Result<std::collections::BTreeSet<String>> {
    let mut statement = tx.prepare_cached("SELECT id FROM images UNION SELECT image FROM containers")?;
    let rows = statement.query_map([], |row| parsed::<ImageId>(row, 0).map(|id| id.digest().hex()))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}
