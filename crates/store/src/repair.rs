//! Repair: what a check found is mended where there is something to mend it from.
//!
//! A damaged image layer is unpacked again from its kept blob, under its own id (others lie on it):
//! 1. It is refused while anything is mounted that the layer is part of: the kernel would go on with the old files.
//! 2. The old layer goes to the trash; the driver makes it anew; the blob is applied, and its digests are verified.
//! 3. It is joined to its parent; side files are written; barrier.
//!
//! A kill in between leaves a layer that the next check finds again: its blob is still there.

use crate::catalog::layers::{Layer, Role};
use crate::catalog::{Durability, layers};
use crate::check::{Found, advise};
use crate::containers::layer_file;
use crate::faults::point;
use crate::layerfiles::{BlobFile, LayerFile};
use crate::load::apply_stream;
use crate::{Code, Error, Result, Store, files, findings};
use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use vellum_archive::compression::Decoder;
use vellum_driver::{Ability, CreateSpec};
use vellum_types::LayerId;

impl Store {
    pub(crate) fn repair(&self, found: &mut [Found]) -> Result<()> {
        // Shallow layers first: what lies on one is joined to it.
        let mut again: BTreeMap<LayerId, std::result::Result<String, Error>> = BTreeMap::new();
        for one in found.iter() {
            let Some(layer) = &one.layer else { continue };
            if unpack_helps(one.finding.id) && layer.role == Role::Image && !again.contains_key(&layer.id) {
                again.insert(layer.id, self.unpack_again(layer));
            }
        }
        for one in found.iter_mut() {
            let done = match (&one.layer, &one.image) {
                (Some(layer), _) if unpack_helps(one.finding.id) => match again.get(&layer.id) {
                    Some(Ok(done)) => Some(done.clone()),
                    Some(Err(e)) => {
                        one.finding.hint = Some(crate::check::told(e));
                        None
                    }
                    None => None,
                },
                (Some(layer), _) => self.repair_layer(one.finding.id, layer)?,
                (None, Some((driver, id))) if one.finding.id == findings::IMAGE_RECORD => {
                    let _placing = crate::open::placing(&self.layout)?;
                    self.catalog.write(Durability::Normal, |tx| self.follow_image(tx, driver, id))?;
                    Some("written anew from the catalog".to_owned())
                }
                _ => None,
            };
            one.finding.repaired = done;
            advise(one);
        }
        self.empty_trash_later();
        Ok(())
    }

    fn repair_layer(&self, id: &str, layer: &Layer) -> Result<Option<String>> {
        match id {
            findings::LAYER_RECORD => {
                let folder = self.layout.layer(&layer.driver, layer.id);
                crate::layout::make_folder(&folder)?;
                self.catalog.read(|tx| LayerFile::of(tx, layer))?.write(&folder)?;
                files::sync_folder(&folder, &[LayerFile::NAME])?;
                Ok(Some("written anew from the catalog".to_owned()))
            }
            findings::BLOB_LOST | findings::BLOB_WRONG => {
                let Some(digest) = layer.blob.as_ref().and_then(|blob| blob.digest) else { return Ok(None) };
                self.catalog.write(Durability::Full, |tx| layers::forget_blob(tx, &digest))?;
                point("store.repair.blob")?;
                files::remove_any(&self.layout.blobs().join(digest.hex()))?;
                self.rewrite_layer_files(&digest)?;
                Ok(Some("the blob is forgotten; the layer itself is there".to_owned()))
            }
            _ => Ok(None),
        }
    }

    fn rewrite_layer_files(&self, digest: &vellum_types::Digest) -> Result<()> {
        for layer in self.catalog.read(layers::all)? {
            let folder = self.layout.layer(&layer.driver, layer.id);
            let stale = LayerFile::read(&folder).ok().flatten();
            if stale.is_some_and(|file| file.blob.is_some_and(|blob| blob.digest == *digest)) {
                self.catalog.read(|tx| LayerFile::of(tx, &layer))?.write(&folder)?;
                files::sync_folder(&folder, &[LayerFile::NAME])?;
            }
        }
        Ok(())
    }

    fn unpack_again(&self, layer: &Layer) -> Result<String> {
        let cannot = |reason: &str, hint: &str| {
            Err(Error::new(Code::Unsupported, format!("unpack layer {} again", layer.id), reason)
                .with_hint(hint))
        };
        let Some((digest, diff_id)) = layer.blob.as_ref().and_then(|b| b.digest).zip(layer.diff_id) else {
            return cannot("its blob was not kept", "remove the image and load it again");
        };
        if layer.driver != self.driver.name() {
            return cannot("another driver keeps it", "open the store with that driver");
        }
        let path = self.layout.blobs().join(digest.hex());
        if crate::verify::digest_of(&path, digest.algorithm())? != Some(digest) {
            return cannot("its blob is damaged too", "remove the image and load it again");
        }
        if self.is_mounted_with(layer.id)? {
            return cannot("it is part of what is mounted", "unmount all containers of its images first");
        }
        self.check_floor("unpack the layer again")?;
        point("store.repair.begin")?;
        let barrier = crate::layout::open_folder(self.layout.root())?;
        let _ = self.driver.remove(layer.id, &self.layout.trash().join(self.driver.name()))?;
        point("store.repair.removed")?;
        let folder = self.make_layer_folder(self.driver.name(), layer.id)?;
        let parallel = self.driver.capabilities().has(Ability::ParallelUnpack);
        let parent = if parallel { None } else { layer.parent };
        self.create_layer(layer.id, &CreateSpec { parent, view: false, options: &[] })?;
        let file = std::fs::File::open(&path).map_err(|e| Error::io("open the blob", &path, e))?;
        let decoder = Decoder::new(file).map_err(|e| Error::io("decompress", &path, e))?;
        let filled = apply_stream(self, layer.id, &mut BufReader::with_capacity(256 << 10, decoder))?;
        if filled.diff_id != diff_id {
            return cannot("its blob unpacks to another digest", "remove the image and load it again");
        }
        point("store.repair.unpacked")?;
        let _ = self.driver.commit(layer.id, layer.parent, &filled.finished.joints)?;
        let mut file = layer_file(layer.id, layer.role, layer.parent, layer.created, None);
        (file.chain_id, file.diff_id) = (layer.chain_id, layer.diff_id);
        (file.usage, file.tar_size) = (filled.finished.usage, filled.tar_size);
        file.recipe = Some(filled.recipe);
        file.blob = BlobFile::of(layer.blob.as_ref());
        file.write(&folder)?;
        files::barrier(&barrier, self.layout.root())?;
        point("store.repair.synced")?;
        self.catalog.write(Durability::Full, |tx| {
            layers::set_recipe(tx, layer.id, &filled.recipe)?;
            layers::set_usage(tx, layer.id, Some(filled.finished.usage))
        })?;
        Ok("unpacked again from its kept blob".to_owned())
    }

    /// Whether a mounted layer has this one in its chain.
    fn is_mounted_with(&self, id: LayerId) -> Result<bool> {
        let mounted: BTreeSet<LayerId> =
            self.mounter.list().map_err(Error::from)?.into_iter().map(|record| record.layer).collect();
        self.catalog.read(|tx| {
            for top in mounted {
                let mut next = Some(top);
                while let Some(layer) = next {
                    if layer == id {
                        return Ok(true);
                    }
                    next = layers::get(tx, layer)?.and_then(|row| row.parent);
                }
            }
            Ok(false)
        })
    }
}

/// Whether unpacking the layer again mends this.
fn unpack_helps(id: &str) -> bool {
    matches!(
        id,
        findings::LAYER_LOST
            | findings::LAYER_STRUCTURE
            | findings::LAYER_RELATION
            | findings::LAYER_CONTENT
            | findings::LAYER_MANIFEST
            | findings::LAYER_RECIPE
    )
}
