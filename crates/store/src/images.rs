//! Images that are there: finding, reading, naming, removing.
//!
//! **Remove** (`rmi`):
//! 1. One durable transaction takes the names away and, with the last of them, the image; its layers that nothing else needs
//!    become `removing`. This is when the removal is reported.
//! 2. Each such layer is renamed into the trash, what lies beside it is deleted, its row is forgotten.
//! 3. The configuration's file is deleted, unless somebody puts files in place at this moment; then `gc` does that.
//! 4. The worker empties the trash.

use crate::catalog::{Durability, images, layers};
use crate::faults::point;
use crate::{BlobFacts, Code, Error, ImageRow, LayerRow, RemoveReport, Result, Store, files};
use std::fs::File;
use vellum_sys::lock::FileLock;
use vellum_types::{ImageId, ImageName, LayerId};

impl Store {
    /// All images of the driver in use, the newest first.
    ///
    /// # Errors
    /// The catalog's.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.catalog.read(|tx| images::all(tx, self.driver.name()))
    }

    /// One image: by name (as a user writes it), id, or unambiguous beginning of an id, with or without `sha256:`.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Invalid`] when several match.
    pub fn find_image(&self, reference: &str) -> Result<ImageRow> {
        self.catalog.read(|tx| images::find(tx, self.driver.name(), reference))
    }

    /// As [`Store::find_image`], the id alone: cheaper, because nothing is added up.
    ///
    /// # Errors
    /// As [`Store::find_image`].
    pub fn image_id(&self, reference: &str) -> Result<ImageId> {
        self.catalog.read(|tx| images::resolve(tx, self.driver.name(), reference))
    }

    /// The configuration, byte for byte.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Damaged`] when its bytes do not have its digest any more.
    pub fn image_config(&self, image: &ImageId) -> Result<Vec<u8>> {
        if !self.catalog.read(|tx| images::exists(tx, self.driver.name(), image))? {
            return Err(Error::not_found("image", image.short()));
        }
        self.read_config(image)
    }

    /// As [`Store::image_config`], also of an image that only containers are left of.
    pub(crate) fn read_config(&self, image: &ImageId) -> Result<Vec<u8>> {
        let path = self.layout.configs().join(image.digest().hex());
        match files::read_if_there(&path)? {
            None => Err(Error::new(Code::Damaged, "read the image's configuration", "the file is gone")
                .object(path.display())
                .with_hint("load the image again")),
            Some(bytes) if ImageId::of(&bytes) != *image => Err(Error::new(
                Code::Damaged,
                "read the image's configuration",
                "its bytes do not have its digest",
            )
            .object(path.display())
            .with_hint("load the image again")),
            Some(bytes) => Ok(bytes),
        }
    }

    /// The manifest it came with, byte for byte, if it came with one.
    ///
    /// # Errors
    /// The catalog's.
    pub fn image_manifest(&self, image: &ImageId) -> Result<Option<Vec<u8>>> {
        self.catalog.read(|tx| images::manifest(tx, self.driver.name(), image))
    }

    /// The layers of an image, the base first.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn image_layers(&self, image: &ImageId) -> Result<Vec<LayerRow>> {
        self.catalog.read(|tx| {
            let driver = self.driver.name();
            images::get(tx, driver, image)?.ok_or_else(|| Error::not_found("image", image.short()))?;
            let layers = layers::of_image(tx, driver, &image.to_string())?;
            Ok(layers.into_iter().filter_map(row_of).collect())
        })
    }

    /// The blob that a layer came in, if it was kept.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the file system's.
    pub fn layer_blob(&self, layer: LayerId) -> Result<Option<(BlobFacts, File)>> {
        let row = self.catalog.read(|tx| layers::get(tx, layer))?;
        let row = row.ok_or_else(|| Error::not_found("layer", layer))?;
        let Some((facts, digest)) = row.blob.and_then(|facts| facts.digest.map(|digest| (facts, digest)))
        else {
            return Ok(None);
        };
        let path = self.layout.blobs().join(digest.hex());
        match File::open(&path) {
            Ok(file) => Ok(Some((facts, file))),
            // Saving goes on without it; `check` reports it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open the blob", path, e)),
        }
    }

    /// Gives an image a name, taking it away from the image that had it.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn tag(&self, image: &ImageId, name: &ImageName) -> Result<()> {
        let driver = self.driver.name();
        point("store.tag.begin")?;
        let _placing = crate::open::placing(&self.layout)?;
        self.catalog.write(Durability::Full, |tx| {
            images::get(tx, driver, image)?.ok_or_else(|| Error::not_found("image", image.short()))?;
            let before = images::tag(tx, driver, image, name)?;
            self.follow_image(tx, driver, image)?;
            before.map_or(Ok(()), |before| self.follow_image(tx, driver, &before))
        })?;
        point("store.tag.done")
    }

    /// By name: takes the name away, and deletes the image with its last name. By id: deletes an image that has at most one name; with
    /// `force`, all its names. An image that containers were made of is deleted only with `force`; its layers stay until
    /// the last of them is gone.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`].
    pub fn remove_image(&self, reference: &str, force: bool) -> Result<RemoveReport> {
        crate::reserve::release_if_full(&self.layout);
        let owner = self.announce()?;
        let driver = self.driver.name();
        point("store.rmi.begin")?;
        let placing = crate::open::placing(&self.layout)?;
        let (mut report, removed) = self.catalog.write(Durability::Full, |tx| {
            let image = images::find(tx, driver, reference)?;
            let named = reference.parse::<ImageName>().ok().filter(|name| image.names.contains(name));
            let untagged = match named {
                Some(name) => vec![name],
                None if image.names.len() > 1 && !force => {
                    return Err(in_use(
                        reference,
                        "it has several names",
                        "remove it by its names, or use --force",
                    ));
                }
                None => image.names.clone(),
            };
            let report = RemoveReport { untagged: untagged.clone(), ..RemoveReport::default() };
            if untagged.len() < image.names.len() {
                untagged.iter().try_for_each(|name| images::untag(tx, driver, name))?;
                match self.follow_image(tx, driver, &image.id) {
                    // On a full disk names can be taken away all the same; `check` has the file follow later.
                    Err(e) if e.code() == Code::Full => {}
                    result => result?,
                }
                return Ok((report, Vec::new()));
            }
            if image.containers > 0 && !force {
                return Err(in_use(
                    reference,
                    &match image.containers {
                        1 => "a container was made of it".to_owned(),
                        many => format!("{many} containers were made of it"),
                    },
                    "remove what was made of it first, or use --force to remove the image and keep that",
                ));
            }
            let removed = images::remove(tx, driver, &image.id, owner.id, &mut self.others_live(owner.id))?;
            Ok((RemoveReport { deleted: Some(image.id), ..report }, removed))
        })?;
        point("store.rmi.recorded")?;
        // Its file goes after the image does: a kill in between leaves a file too many, which is garbage, rather than one too
        // few. Unless another process has loaded it again by now.
        if let Some(id) = &report.deleted {
            self.catalog.write(Durability::Normal, |tx| self.follow_image(tx, driver, id))?;
        }
        drop(placing);
        report.layers = removed.len();
        report.bytes = removed.iter().map(|layer| layer.usage.bytes).sum();
        self.finish_removal(&removed)?;
        if let Some(image) = &report.deleted {
            self.forget_config(image)?;
        }
        self.empty_trash_later();
        Ok(report)
    }

    /// Deletes the file of a configuration that no image and no container has any more.
    pub(crate) fn forget_config(&self, image: &ImageId) -> Result<()> {
        let lock = self.layout.lock("sweep");
        // Who puts a file in place has no row for it yet. Waiting for a load would take long, and nothing depends on this.
        let Some(_sweep) =
            FileLock::try_exclusive(&lock).map_err(|e| Error::io("take the lock", &lock, e))?
        else {
            return Ok(());
        };
        if self.catalog.read_settled(|tx| images::config_needed(tx, image))? {
            return Ok(());
        }
        files::remove_any(&self.layout.configs().join(image.digest().hex()))
    }
}

fn in_use(reference: &str, reason: &str, hint: &str) -> Error {
    Error::new(Code::InUse, format!("remove the image '{reference}'"), reason).with_hint(hint)
}

fn row_of(layer: layers::Layer) -> Option<LayerRow> {
    Some(LayerRow {
        id: layer.id,
        diff_id: layer.diff_id?,
        chain_id: layer.chain_id?,
        parent: layer.parent,
        size: layer.usage,
        tar_size: layer.tar_size,
        blob: layer.blob,
        created: layer.created,
    })
}
