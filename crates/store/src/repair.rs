//! Repair: what a check found is mended where there is something to mend it from.
//!
//! A damaged layer of an image is unpacked again from its kept blob, and replaced as [`crate::mend`] tells; layers whose blobs were
//! not kept are mended by loading the image again. Records are written anew from the catalog, and blobs that are wrong are forgotten.

use crate::catalog::layers::{Layer, Role};
use crate::catalog::{Durability, layers};
use crate::check::{Found, advise};
use crate::faults::point;
use crate::layerfiles::LayerFile;
use crate::load::apply_stream;
use crate::mend::Sound;
use crate::stream::Stoppable;
use crate::{Code, Error, Result, Store, files, findings};
use std::collections::BTreeMap;
use std::io::BufReader;
use vellum_archive::compression::Decoder;
use vellum_types::LayerId;

impl Store {
    pub(crate) fn repair(&self, found: &mut [Found]) -> Result<()> {
        // Shallow layers first: what lies on one is joined to it.
        let mut again: BTreeMap<LayerId, std::result::Result<String, Error>> = BTreeMap::new();
        for one in found.iter() {
            let Some(layer) = &one.layer else { continue };
            if unpack_helps(one.finding.id) && layer.role == Role::Image && !again.contains_key(&layer.id) {
                again.insert(layer.id, self.unpack_again(layer, &one.finding.detail));
            }
        }
        for one in found.iter_mut() {
            let done = match (&one.layer, &one.image) {
                (Some(layer), _) if unpack_helps(one.finding.id) => match again.get(&layer.id) {
                    Some(Ok(done)) => Some(done.clone()),
                    Some(Err(e)) => {
                        one.finding.not_repaired = Some(crate::check::told(e));
                        one.finding.hint = e.hint().map(str::to_owned);
                        None
                    }
                    None => None,
                },
                _ if one.finding.id == findings::IDENTITY => {
                    self.identity.write(&self.layout)?;
                    Some("written anew from the catalog".to_owned())
                }
                (Some(layer), _) => self.repair_layer(one.finding.id, layer)?,
                (None, Some((driver, id))) if one.finding.id == findings::IMAGE_RECORD => {
                    let _placing = crate::open::placing(&self.layout)?;
                    self.catalog.write(Durability::Normal, |tx| self.follow_image(tx, driver, id))?;
                    point("store.repair.image")?;
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
                point("store.repair.record")?;
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

    fn unpack_again(&self, layer: &Layer, detail: &str) -> Result<String> {
        let cannot = |reason: &str, hint: &str| {
            Err(Error::new(Code::Unsupported, format!("unpack layer {} again", layer.id), reason)
                .with_hint(hint))
        };
        let Some((digest, diff_id)) = layer.blob.as_ref().and_then(|b| b.digest).zip(layer.diff_id) else {
            return cannot("its blob was not kept", crate::mend::HINT);
        };
        if layer.driver != self.driver.name() {
            return cannot("another driver keeps it", "open the store with that driver");
        }
        let path = self.layout.blobs().join(digest.hex());
        if crate::verify::digest_of(&path, digest.algorithm())? != Some(digest) {
            return cannot("its blob is damaged too", "load the image again, which unpacks it anew");
        }
        self.refuse_in_use(layer.id)?;
        self.check_floor("unpack the layer again")?;
        self.note_damage(layer.id, detail);
        point("store.repair.begin")?;
        let below = self.chain_of(layer.parent)?;
        let done = self.operate(|owner| {
            let staged = self.stage(owner, Role::Image, &below, |id, stop| {
                let file = std::fs::File::open(&path).map_err(|e| Error::io("open the blob", &path, e))?;
                let decoder = Decoder::new(file).map_err(|e| Error::io("decompress", &path, e))?;
                let input = BufReader::with_capacity(256 << 10, decoder);
                apply_stream(self, id, &mut Stoppable { input, stop }, None)
            })?;
            if staged.filled.diff_id != diff_id {
                return cannot("its blob unpacks to another digest", "load the image again");
            }
            let (filled, barrier) = (&staged.filled, &staged.barrier);
            self.replace_layer(owner, layer, &Sound { id: staged.id, filled, blob: None, barrier })?;
            Ok("unpacked again from its kept blob".to_owned())
        });
        point("store.repair.done")?;
        done
    }
}

/// Whether unpacking the layer again mends this.
pub(crate) fn unpack_helps(id: &str) -> bool {
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
