//! Archives, written.
//!
//! An OCI layout holds its blobs first, then `index.json` and `oci-layout`; a docker archive holds its layers first, then
//! configurations and `manifest.json`. Either is the same byte for byte whenever the same images are saved, into
//! whatever kind of output: entries have no time and no owner, and their order follows from the images.
//!
//! A layer that several images share is written once. A blob that the store kept is written as it is when its
//! compression is the one asked for (or none was asked for); when all of an image's blobs come out as the recorded
//! manifest has them, the manifest is written byte for byte as it came, so that the image keeps its digest.

mod build;
mod docker;
mod folder;
mod layout;
mod place;
mod tarball;

pub use build::{NewImage, build};

use crate::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use vellum_archive::compression::Compression;
use vellum_store::{LayerOutcome, LayerRow, Progress, Store};
use vellum_types::{DiffId, ImageId, ImageName};

/// What form is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaveFormat {
    /// An OCI image layout.
    #[default]
    Oci,
    /// A docker archive, which older tools read, too.
    Docker,
}

/// How images are saved.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// What form.
    pub format: SaveFormat,
    /// How an OCI layout's layers are compressed; `None` for kept blobs as they are and gzip for the rest. Docker
    /// archives hold plain layers.
    pub compression: Option<Compression>,
}

/// An image to save, under these names.
#[derive(Debug, Clone)]
pub struct SaveImage {
    /// Which.
    pub id: ImageId,
    /// The names it has in the archive; possibly none.
    pub names: Vec<ImageName>,
}

/// Where the archive goes.
pub enum Output<'a> {
    /// A regular file, from its beginning: lengths are filled in when they are known.
    File(&'a File),
    /// A pipe: what has no known length yet is spooled first.
    Stream(&'a mut dyn Write),
    /// A folder, for an OCI layout: new, empty, or a layout that is added to.
    Folder(&'a Path),
}

/// An image with what the store knows of it.
struct Loaded {
    id: ImageId,
    names: Vec<ImageName>,
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    layers: Vec<LayerRow>,
}

/// Writes images of `store` as one archive. `spool` is a folder for files without a name.
///
/// # Errors
/// A layer cannot be given back, or the output cannot be written.
pub fn save(
    store: &Store,
    images: &[SaveImage],
    options: &SaveOptions,
    output: Output<'_>,
    spool: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let mut loaded = Vec::with_capacity(images.len());
    for image in images {
        loaded.push(Loaded {
            id: image.id,
            names: image.names.clone(),
            config: store.image_config(&image.id)?,
            manifest: store.image_manifest(&image.id)?,
            layers: store.image_layers(&image.id)?,
        });
    }
    let source = Source { store, progress };
    match (options.format, output) {
        (SaveFormat::Oci, Output::Folder(path)) => {
            let mut place = folder::FolderPlace::open(path)?;
            layout::write(&source, &loaded, options.compression, &mut place)
        }
        (SaveFormat::Docker, Output::Folder(path)) => Err(Error::Output {
            output: path.display().to_string(),
            reason: "a docker archive is a file, and this is a folder".into(),
        }),
        (format, output) => {
            let mut place = tarball::TarPlace::new(output, spool)?;
            match format {
                SaveFormat::Oci => layout::write(&source, &loaded, options.compression, &mut place)?,
                SaveFormat::Docker => docker::write(&source, &loaded, &mut place)?,
            }
            place.finish()
        }
    }
}

/// What gives layers.
struct Source<'a> {
    store: &'a Store,
    progress: &'a dyn Progress,
}

impl Source<'_> {
    /// The layer's tar into `out`, telling how far it is.
    fn tar(&self, index: usize, layer: &LayerRow, out: &mut dyn Write) -> Result<()> {
        let mut told = Told { out, index, progress: self.progress };
        self.progress.layer_started(index, &label(&layer.diff_id), Some(layer.tar_size));
        self.store.layer_tar(layer.id, &mut told)?;
        self.progress.layer_done(index, LayerOutcome::Unpacked);
        Ok(())
    }
}

/// What people see of a layer.
fn label(diff_id: &DiffId) -> String {
    diff_id.digest().hex()[..12].to_owned()
}

struct Told<'a> {
    out: &'a mut dyn Write,
    index: usize,
    progress: &'a dyn Progress,
}

impl Write for Told<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.progress.bytes(self.index, count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// The layers of all images, each once, in the order in which they come first.
fn distinct(images: &[Loaded]) -> Vec<&LayerRow> {
    let mut seen = HashSet::new();
    images.iter().flat_map(|image| &image.layers).filter(|layer| seen.insert(layer.diff_id)).collect()
}
