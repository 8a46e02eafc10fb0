//! An image made of tars, in no store.

use super::layout::{annotation, descriptor, document, index, json, media_type};
use super::place::{Place, copy};
use super::tarball::TarPlace;
use super::{Output, folder};
use crate::media;
use crate::spec::{Written, WrittenManifest};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use vellum_archive::compression::{Compression, Encoder};
use vellum_archive::digest::HashingWriter;
use vellum_types::{ImageId, ImageName};

/// What an image is made of.
#[derive(Debug)]
pub struct NewImage {
    /// Its name.
    pub name: ImageName,
    /// Its configuration; `rootfs` is filled in.
    pub config: Map<String, Value>,
    /// Its layers' plain tars, the base first.
    pub layers: Vec<File>,
}

/// Writes an image as an OCI layout with layers compressed by `compression`, and tells its id. `spool` is a folder
/// for files without a name.
///
/// # Errors
/// A tar cannot be read, or the output not be written.
pub fn build(image: NewImage, compression: Compression, output: Output<'_>, spool: &Path) -> Result<ImageId> {
    if let Output::Folder(path) = output {
        return write(image, compression, &mut folder::FolderPlace::open(path)?);
    }
    let mut place = TarPlace::new(output, spool)?;
    let id = write(image, compression, &mut place)?;
    place.finish()?;
    Ok(id)
}

fn write(image: NewImage, compression: Compression, place: &mut dyn Place) -> Result<ImageId> {
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (at, tar) in image.layers.iter().enumerate() {
        let failed = || Error::io(format!("write layer {at}"));
        let length = tar.metadata().map_err(failed())?.len();
        let (digest, size) = place.blob(&mut |out: &mut dyn Write| {
            let mut tee = HashingWriter::new(Encoder::new(compression, out).map_err(failed())?);
            copy(tar, length, None, &mut tee)?;
            let (diff_id, _, encoder) = tee.finish();
            diff_ids.push(Value::from(diff_id.to_string()));
            encoder.finish().map(|_| ()).map_err(failed())
        })?;
        layers.push(descriptor(&media_type(compression), digest, size));
    }
    let mut config = image.config;
    config.insert("rootfs".into(), serde_json::json!({ "type": "layers", "diff_ids": diff_ids }));
    let config = json(&config)?;
    let id = ImageId::of(&config);
    document(place, &config)?;
    let manifest = json(&WrittenManifest {
        schema_version: 2,
        media_type: media::OCI_MANIFEST,
        config: descriptor(media::OCI_CONFIG, *id.digest(), config.len() as u64),
        layers,
        annotations: BTreeMap::new(),
    })?;
    let digest = document(place, &manifest)?;
    let written = descriptor(media::OCI_MANIFEST, digest, manifest.len() as u64);
    let entry = Written { annotations: annotation(&image.name, true), ..written };
    let before = place.read("index.json")?;
    place.document("index.json", &index(before, vec![entry])?)?;
    place.document("oci-layout", super::layout::MARKER)?;
    Ok(id)
}
