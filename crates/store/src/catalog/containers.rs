//! Rows of containers and save points.

use super::{layer_id, nanoseconds, parsed, parsed_or_none, size, time};
use crate::{Code, Error, Result, SavePointRow};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use vellum_archive::target::Usage;
use vellum_types::{ContainerId, ContainerName, ImageId, ImageName, LayerId};

/// A container whose layer is ready, with what the catalog knows of its layer.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) name: Option<ContainerName>,
    pub(crate) image: ImageId,
    pub(crate) image_name: Option<ImageName>,
    pub(crate) driver: String,
    pub(crate) layer: LayerId,
    pub(crate) parent: Option<LayerId>,
    pub(crate) created: Timestamp,
    /// As last measured; `None` when that is out of date.
    pub(crate) usage: Option<Usage>,
    pub(crate) save_points: usize,
    /// Its layer was made without a sync (see [`crate::fresh`]).
    pub(crate) fresh: bool,
}

impl Container {
    /// What people call it.
    pub(crate) fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.short(), ToString::to_string)
    }
}

const COLUMNS: &str = "
    SELECT c.id, c.name, c.image, l.driver, c.layer, l.parent, c.created, l.bytes, l.inodes, l.dirty,
           (SELECT count(*) FROM save_points s WHERE s.container = c.id),
           (SELECT min(n.name) FROM names n WHERE n.driver = l.driver AND n.image = c.image), l.fresh
      FROM containers c JOIN layers l ON l.id = c.layer
     WHERE l.state = 'ready'";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Container> {
    let usage = Usage { bytes: size(row, 7)?, inodes: size(row, 8)? };
    let dirty: bool = row.get(9)?;
    Ok(Container {
        id: parsed(row, 0)?,
        name: parsed_or_none(row, 1)?,
        image: parsed(row, 2)?,
        image_name: parsed_or_none(row, 11)?,
        driver: row.get(3)?,
        layer: layer_id(row, 4)?,
        parent: super::layer_id_or_none(row, 5)?,
        created: time(row, 6)?,
        usage: (!dirty).then_some(usage),
        save_points: row.get::<_, i64>(10)?.try_into().unwrap_or(0),
        fresh: row.get(12)?,
    })
}

/// All containers, the newest first.
pub(crate) fn all(tx: &Transaction<'_>) -> Result<Vec<Container>> {
    let mut statement = tx.prepare_cached(&format!("{COLUMNS} ORDER BY c.created DESC, c.id"))?;
    let rows = statement.query_map([], of_row)?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// One container.
pub(crate) fn get(tx: &Transaction<'_>, id: &ContainerId) -> Result<Container> {
    let mut statement = tx.prepare_cached(&format!("{COLUMNS} AND c.id = ?1"))?;
    statement
        .query_row([id.to_string()], of_row)
        .optional()?
        .ok_or_else(|| Error::not_found("container", id.short()))
}

/// Whether there is a row.
pub(crate) fn get_bare(tx: &Transaction<'_>, id: &ContainerId) -> Result<bool> {
    let found: Option<i64> = tx
        .prepare_cached("SELECT 1 FROM containers WHERE id = ?1")?
        .query_row([id.to_string()], |row| row.get(0))
        .optional()?;
    Ok(found.is_some())
}

/// By name, id, or unambiguous beginning of an id.
pub(crate) fn find(tx: &Transaction<'_>, reference: &str) -> Result<Container> {
    let named: Option<String> = tx
        .prepare_cached("SELECT id FROM containers WHERE name = ?1")?
        .query_row([reference], |row| row.get(0))
        .optional()?;
    // One statement serves every way of asking: preparing it costs more than running it.
    let mut of_id = tx.prepare_cached(&format!("{COLUMNS} AND c.id = ?1"))?;
    if let Some(id) = named
        && let Some(found) = of_id.query_row([id], of_row).optional()?
    {
        return Ok(found);
    }
    let missing = || Error::not_found("container", reference).with_hint("`vellum ps` lists what there is");
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if reference.is_empty() || reference.len() > 64 || !reference.bytes().all(hex) {
        return Err(missing());
    }
    if reference.len() == 64 {
        return of_id.query_row([reference], of_row).optional()?.ok_or_else(missing);
    }
    let mut statement = tx.prepare_cached(&format!("{COLUMNS} AND c.id >= ?1 AND c.id < ?2 LIMIT 2"))?;
    // 'g' follows the last digit.
    let mut found: Vec<Container> = statement
        .query_map([reference, &format!("{reference}g")], of_row)?
        .collect::<std::result::Result<_, _>>()?;
    match (found.len(), found.pop()) {
        (1, Some(container)) => Ok(container),
        (0, _) => Err(missing()),
        _ => Err(Error::new(
            Code::Invalid,
            format!("find the container '{reference}'"),
            "several containers' ids begin with that",
        )
        .with_hint("write more digits")),
    }
}

/// Fails if the name is taken.
pub(crate) fn name_is_free(tx: &Transaction<'_>, name: &ContainerName) -> Result<()> {
    let taken: Option<i64> = tx
        .prepare_cached("SELECT 1 FROM containers WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    match taken {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Code::Exists,
            format!("make the container '{name}'"),
            "another container has this name",
        )
        .with_hint("remove that one first, or choose another name")),
    }
}

/// Adds a container; it exists when its layer is ready.
pub(crate) fn add(
    tx: &Transaction<'_>,
    id: &ContainerId,
    name: Option<&ContainerName>,
    image: &ImageId,
    layer: LayerId,
    created: Timestamp,
) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO containers (id, name, image, layer, created) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        id.to_string(),
        name.map(ContainerName::as_str),
        image.to_string(),
        layer.get(),
        nanoseconds(created),
    ])?;
    Ok(())
}

/// Gives a container another layer, if it still has `from`.
pub(crate) fn set_layer(tx: &Transaction<'_>, id: &ContainerId, from: LayerId, to: LayerId) -> Result<()> {
    let changed = tx
        .prepare_cached("UPDATE containers SET layer = ?3 WHERE id = ?1 AND layer = ?2")?
        .execute(params![id.to_string(), from.get(), to.get()])?;
    if changed == 1 {
        return Ok(());
    }
    Err(Error::new(Code::InUse, "go back to the save point", "the container was changed by another process")
        .object(id.short()))
}

/// Takes the row away, with those of its save points. Their layers are the caller's.
pub(crate) fn remove(tx: &Transaction<'_>, id: &ContainerId) -> Result<()> {
    tx.prepare_cached("DELETE FROM containers WHERE id = ?1")?.execute([id.to_string()])?;
    Ok(())
}

/// Save points of a container that are ready, the oldest first.
pub(crate) fn save_points(tx: &Transaction<'_>, id: &ContainerId) -> Result<Vec<SavePointRow>> {
    let mut statement = tx.prepare_cached(
        "SELECT s.name, s.layer, s.created, l.bytes, l.inodes FROM save_points s JOIN layers l ON l.id = s.layer \
         WHERE s.container = ?1 AND l.state = 'ready' ORDER BY s.created, s.layer",
    )?;
    let rows = statement.query_map([id.to_string()], |row| {
        Ok(SavePointRow {
            container: *id,
            name: parsed(row, 0)?,
            layer: layer_id(row, 1)?,
            created: time(row, 2)?,
            size: Usage { bytes: size(row, 3)?, inodes: size(row, 4)? },
        })
    })?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// Adds a save point; it exists when its layer is ready.
pub(crate) fn add_save_point(
    tx: &Transaction<'_>,
    container: &ContainerId,
    name: &ContainerName,
    layer: LayerId,
    created: Timestamp,
) -> Result<()> {
    let taken: Option<i64> = tx
        .prepare_cached("SELECT 1 FROM save_points WHERE container = ?1 AND name = ?2")?
        .query_row(params![container.to_string(), name.as_str()], |row| row.get(0))
        .optional()?;
    if taken.is_some() {
        return Err(Error::new(
            Code::Exists,
            format!("make the save point '{name}'"),
            "the container has a save point of this name",
        )
        .with_hint("choose another name"));
    }
    tx.prepare_cached("INSERT INTO save_points (container, name, layer, created) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![container.to_string(), name.as_str(), layer.get(), nanoseconds(created)])?;
    Ok(())
}

/// Takes a save point's row away.
pub(crate) fn remove_save_point(
    tx: &Transaction<'_>,
    container: &ContainerId,
    name: &ContainerName,
) -> Result<()> {
    tx.prepare_cached("DELETE FROM save_points WHERE container = ?1 AND name = ?2")?
        .execute(params![container.to_string(), name.as_str()])?;
    Ok(())
}

/// Whose layer this is: (container, name of the save point if it is one).
pub(crate) fn holder(
    tx: &Transaction<'_>,
    layer: LayerId,
) -> Result<Option<(ContainerId, Option<ContainerName>)>> {
    Ok(tx
        .prepare_cached(
            "SELECT id, NULL FROM containers WHERE layer = ?1 \
             UNION ALL SELECT container, name FROM save_points WHERE layer = ?1",
        )?
        .query_row([layer.get()], |row| Ok((parsed(row, 0)?, parsed_or_none(row, 1)?)))
        .optional()?)
}

/// All layers of containers and save points count as out of date: after a power cut nobody knows.
pub(crate) fn distrust_usage(tx: &Transaction<'_>) -> Result<()> {
    tx.prepare_cached("UPDATE layers SET dirty = 1 WHERE role = 'container' AND state = 'ready'")?
        .execute([])?;
    Ok(())
}

/// A number of rows, for overviews.
pub(crate) fn counts(tx: &Transaction<'_>) -> Result<(usize, usize, usize)> {
    let count = |sql: &str| -> Result<usize> {
        Ok(tx.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(0))
    };
    Ok((
        count("SELECT count(*) FROM containers c JOIN layers l ON l.id = c.layer WHERE l.state = 'ready'")?,
        count("SELECT count(*) FROM layers WHERE role = 'image' AND state = 'ready'")?,
        count("SELECT count(*) FROM layers WHERE role = 'save' AND state = 'ready'")?,
    ))
}

/// The image layer that a container of this image lies on; fails when there is no such image.
pub(crate) fn base_for(tx: &Transaction<'_>, driver: &str, image: &ImageId) -> Result<Option<LayerId>> {
    if !super::images::exists(tx, driver, image)? {
        return Err(Error::not_found("image", image.short()));
    }
    let top = super::images::top(tx, driver, image)?;
    super::damage::refuse(tx, top, "make a container")?;
    Ok(top)
}
