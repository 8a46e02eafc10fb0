//! What the store keeps on disk beside the catalog, so that the catalog can be rebuilt.
//!
//! ```text
//! layers/<driver>/<id>/layer.json   what the row of the layer says, and whose it is
//! layers/<driver>/<id>/manifest     what the layer put on disk: what `check` compares the disk with
//! layers/<driver>/<id>/recipe       what gives the tar back
//! config/<hex>                      an image's configuration, byte for byte
//! images/<driver>/<hex>.json        an image's names, layers and manifest
//! ```
//!
//! The catalog is the truth; these follow it. They are on the disk before the row is, so that a store after a power cut is whole; those of layers that were made without a sync are made
//! good for ([`crate::fresh`]).
//! An image's file is written inside the transaction that changes its rows: a kill in between leaves a file that is a
//! moment ahead, and the next change, or `check`, writes it anew.

use crate::catalog::layers::{Layer, Role, State};
use crate::catalog::{containers, images, layers, snapshots};
use crate::{BlobFacts, Code, Error, Result, SnapshotKind, Store, files};
use jiff::Timestamp;
use rusqlite::Transaction;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vellum_archive::target::Usage;
use vellum_types::{ChainId, ContainerId, ContainerName, DiffId, Digest, ImageId, ImageName, LayerId};

/// `layer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    pub(crate) id: LayerId,
    pub(crate) role: Role,
    #[serde(deserialize_with = "said")]
    pub(crate) parent: Option<LayerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chain_id: Option<ChainId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) diff_id: Option<DiffId>,
    pub(crate) usage: Usage,
    pub(crate) tar_size: u64,
    /// The digest of the file `recipe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recipe: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blob: Option<BlobFile>,
    pub(crate) created: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container: Option<ContainerFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<SnapshotFile>,
    /// Front ends' snapshots that this layer of an image is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) adopted: Vec<SnapshotFile>,
}

/// The blob a layer came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlobFile {
    pub(crate) digest: Digest,
    #[serde(deserialize_with = "said")]
    pub(crate) size: Option<u64>,
    #[serde(deserialize_with = "said")]
    pub(crate) media_type: Option<String>,
}

/// Whose layer it is, of a container's and of a save point's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerFile {
    pub(crate) id: ContainerId,
    #[serde(deserialize_with = "said")]
    pub(crate) name: Option<ContainerName>,
    pub(crate) image: ImageId,
    pub(crate) created: Timestamp,
    /// The save point's name, if it is one.
    #[serde(deserialize_with = "said")]
    pub(crate) save_point: Option<ContainerName>,
}

/// Whose layer it is, of a front end's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotFile {
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) kind: SnapshotKind,
    #[serde(deserialize_with = "said")]
    pub(crate) parent: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created: Timestamp,
}

/// `images/<driver>/<hex>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageFile {
    pub(crate) id: ImageId,
    pub(crate) names: Vec<ImageName>,
    pub(crate) layers: Vec<ChainId>,
    pub(crate) added: Timestamp,
    /// JSON text, as it came.
    #[serde(deserialize_with = "said")]
    pub(crate) manifest: Option<String>,
}

impl BlobFile {
    pub(crate) fn of(facts: Option<&BlobFacts>) -> Option<Self> {
        let facts = facts?;
        Some(Self { digest: facts.digest?, size: facts.size, media_type: facts.media_type.clone() })
    }

    pub(crate) fn facts(&self) -> BlobFacts {
        BlobFacts { digest: Some(self.digest), size: self.size, media_type: self.media_type.clone() }
    }
}

impl LayerFile {
    pub(crate) const NAME: &'static str = "layer.json";

    /// What a row and its relations say.
    pub(crate) fn of(tx: &Transaction<'_>, layer: &Layer) -> Result<Self> {
        let container = match containers::holder(tx, layer.id)? {
            None => None,
            Some((id, save_point)) => {
                let row = containers::get(tx, &id)?;
                Some(ContainerFile { id, name: row.name, image: row.image, created: row.created, save_point })
            }
        };
        let mut held = snapshots::of_layer(tx, layer.id)?
            .into_iter()
            .map(|(namespace, row)| SnapshotFile {
                namespace,
                key: row.key,
                kind: row.kind,
                parent: row.parent,
                labels: row.labels,
                created: row.created,
            })
            .collect::<Vec<_>>();
        let snapshot = if layer.role == Role::Image { None } else { held.pop() };
        Ok(Self {
            id: layer.id,
            role: layer.role,
            parent: layer.parent,
            chain_id: layer.chain_id,
            diff_id: layer.diff_id,
            usage: layer.usage,
            tar_size: layer.tar_size,
            recipe: layer.recipe,
            blob: BlobFile::of(layer.blob.as_ref()),
            created: layer.created,
            container,
            snapshot,
            adopted: held,
        })
    }

    /// `None` if there is no such file.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        read_json(&folder.join(Self::NAME))
    }

    /// Replaces the file; on the disk with the caller's next barrier.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        files::replace(folder, Self::NAME, &json(self)?)
    }

    /// Writes the file if there is none; on the disk with the caller's next barrier.
    pub(crate) fn provide(&self, folder: &Path) -> Result<()> {
        files::provide(folder, Self::NAME, &json(self)?)
    }

    /// Writes the file of a layer that nobody knows of yet, into a folder that was made just now.
    pub(crate) fn write_first(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::NAME);
        files::write_new(&path, &json(self)?).map_err(|e| Error::io("write", &path, e))
    }

    /// What `check` compares: usage moves on where it is `moving`, and of a writable layer, and the file does not follow. That a blob is kept is written
    /// here after the catalog knows it; who is killed between has lost nothing but what a lost catalog would want.
    pub(crate) fn same_identity(&self, other: &Self, moving: bool) -> bool {
        let mut a = self.clone();
        if moving || a.role != Role::Image {
            a.usage = other.usage;
        }
        a.created = other.created;
        if a.blob.is_none() || other.blob.is_none() {
            a.blob.clone_from(&other.blob);
        }
        a == *other
    }
}

impl ImageFile {
    /// What the rows say.
    pub(crate) fn of(tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<Self> {
        let text = id.to_string();
        let layers = layers::of_image(tx, driver, &text)?;
        Ok(Self {
            id: *id,
            names: images::names_of(tx, driver, &text)?,
            layers: layers.iter().filter_map(|layer| layer.chain_id).collect(),
            added: images::added(tx, driver, id)?.unwrap_or_else(Timestamp::now),
            manifest: images::manifest(tx, driver, id)?.and_then(|bytes| String::from_utf8(bytes).ok()),
        })
    }

    pub(crate) fn name(id: &ImageId) -> String {
        format!("{}.json", id.digest().hex())
    }

    pub(crate) fn read(folder: &Path, id: &ImageId) -> Result<Option<Self>> {
        read_json(&folder.join(Self::name(id)))
    }
}

/// That there is none is said too: a key that is missing has been damaged.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> std::result::Result<Option<T>, D::Error> {
    Option::deserialize(value)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = files::read_if_there(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::caused(Code::Damaged, "read the store's record", e).object(path.display()))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::caused(Code::System, "write a record", e))
}

impl Store {
    /// Makes the file of an image follow its rows, inside the transaction that changes them (so that two that change the same
    /// image write in the order in which they commit).
    pub(crate) fn follow_image(&self, tx: &Transaction<'_>, driver: &str, id: &ImageId) -> Result<()> {
        let folder = self.layout.images().join(driver);
        if !images::exists(tx, driver, id)? {
            return files::remove_any(&folder.join(ImageFile::name(id)));
        }
        crate::layout::make_folder(&folder)?;
        files::publish(&folder, &ImageFile::name(id), &json(&ImageFile::of(tx, driver, id)?)?)
    }

    /// Makes the folder beside a new layer.
    pub(crate) fn make_layer_folder(&self, driver: &str, id: LayerId) -> Result<PathBuf> {
        let folder = self.no_layer_folder(driver, id)?;
        crate::layout::make_folder(&folder)?;
        Ok(folder)
    }

    /// Where the folder beside a new layer will be. After a power cut ids may be handed out again, so what is there belongs to nobody.
    pub(crate) fn no_layer_folder(&self, driver: &str, id: LayerId) -> Result<PathBuf> {
        let folder = self.layout.layer(driver, id);
        if std::fs::symlink_metadata(&folder).is_ok() {
            files::remove_any(&folder)?;
        }
        Ok(folder)
    }

    /// Makes `layer.json` follow the row, by `put`, and its folder if there is none.
    pub(crate) fn follow_layer(
        &self,
        id: LayerId,
        put: impl FnOnce(&LayerFile, &Path) -> Result<()>,
    ) -> Result<()> {
        let ready = |layer: &Layer| layer.state == State::Ready;
        let found = self.catalog.read(|tx| match layers::get(tx, id)?.filter(ready) {
            None => Ok(None),
            Some(layer) => Ok(Some((LayerFile::of(tx, &layer)?, layer.driver))),
        })?;
        let Some((file, driver)) = found else { return Ok(()) };
        let folder = self.layout.layer(&driver, id);
        crate::layout::make_folder(&folder)?;
        let result = put(&file, &folder);
        // Who removed it meanwhile has gone by this folder already.
        if !self.catalog.read(|tx| layers::get(tx, id))?.as_ref().is_some_and(ready) {
            return files::remove_any(&folder);
        }
        result
    }
}
