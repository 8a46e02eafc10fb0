//! Archives, read.
//!
//! ```text
//!   folder ───────────────────────────────┐
//!   tar file ── index of its headers ─────┤             oci-layout + index.json ── layout
//!   compressed tar, pipe ── spool ── tar ─┴── Files ──┬─ manifest.json ─────────── docker
//!                                                     └─ repositories, ID/json ─── legacy
//! ```
//!
//! Whichever it is, the outcome is the same: [`Image`]s with their configuration byte for byte and their layers as
//! [`LayerSource`]s that read in place.

mod docker;
mod files;
mod layout;
mod legacy;
mod tarball;

use crate::{Error, Result, spool};
use files::{Blob, Files};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use vellum_archive::compression;
use vellum_store::{BlobFacts, LayerSource};
use vellum_types::{ImageName, Platform};

/// What form an archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An OCI image layout.
    OciLayout,
    /// What `docker save` writes: `manifest.json`.
    DockerArchive,
    /// What `docker save` wrote before 1.10: `repositories` and a folder for each layer.
    DockerLegacy,
}

/// An image archive, opened for reading.
#[derive(Debug)]
pub struct Archive {
    files: Files,
    format: Format,
}

/// An image in an archive.
#[derive(Debug)]
pub struct Image {
    /// Its names in the archive.
    pub names: Vec<ImageName>,
    /// Names in the archive that are no names of images, as they are written there.
    pub unusable_names: Vec<String>,
    /// The configuration, byte for byte.
    pub config: Vec<u8>,
    /// The manifest, byte for byte; docker archives have none.
    pub manifest: Option<Vec<u8>>,
    /// The layers, the base first.
    pub layers: Vec<Layer>,
    /// What the configuration says it is for.
    pub platform: Option<Platform>,
}

/// A layer of an image in an archive. Read in place.
#[derive(Debug, Clone)]
pub struct Layer {
    blob: Blob,
    facts: Option<BlobFacts>,
}

impl LayerSource for Layer {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        self.blob.open()
    }

    fn blob(&self) -> Option<BlobFacts> {
        self.facts.clone()
    }
}

impl Layer {
    /// The bytes it takes in the archive.
    pub fn size(&self) -> u64 {
        self.blob.size
    }
}

impl Archive {
    /// Opens a folder, a tar or a compressed tar, told by its content. What cannot be read at random is first copied into a
    /// file without a name in the folder `spool`.
    ///
    /// # Errors
    /// It cannot be read, or is no image archive.
    pub fn open(path: &Path, spool: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let facts = std::fs::metadata(path).map_err(Error::io(format!("open {shown}")))?;
        if facts.is_dir() {
            return Self::of(Files::folder(path)?);
        }
        let file = File::open(path).map_err(Error::io(format!("open {shown}")))?;
        if facts.is_file() { Self::of_file(file, shown, spool) } else { Self::of_stream(file, shown, spool) }
    }

    /// Reads an archive from a pipe, which is first copied into a file without a name in the folder `spool`.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn from_reader(input: impl Read, spool: &Path) -> Result<Self> {
        Self::of_stream(input, "standard input".into(), spool)
    }

    fn of_stream(input: impl Read, shown: String, spool: &Path) -> Result<Self> {
        let (head, whole) = begin(input, &shown)?;
        check_head(&head, &shown)?;
        let file = if compression::detect(&head) == compression::Compression::None {
            spool::fill(whole, spool, &shown)?
        } else {
            decompressed(whole, spool, &shown)?
        };
        Self::of(Files::tar(file, shown)?)
    }

    fn of_file(file: File, shown: String, spool: &Path) -> Result<Self> {
        let mut head = [0; tarball::BLOCK as usize];
        let count = file.read_at(&mut head, 0).map_err(Error::io(format!("read {shown}")))?;
        let head = &head[..count];
        check_head(head, &shown)?;
        let file = if compression::detect(head) == compression::Compression::None {
            file
        } else {
            use std::io::Seek as _;
            let mut file = file;
            file.rewind().map_err(Error::io(format!("read {shown}")))?;
            decompressed(file, spool, &shown)?
        };
        Self::of(Files::tar(file, shown)?)
    }

    fn of(files: Files) -> Result<Self> {
        // Newer docker writes both forms at once; the layout tells more (digests, manifests).
        let has = |path| Ok::<bool, Error>(files.find(path)?.is_some());
        let format = if has("index.json")? && has("oci-layout")? {
            Format::OciLayout
        } else if has("manifest.json")? {
            Format::DockerArchive
        } else if has("repositories")? || legacy::looks_so(&files)? {
            Format::DockerLegacy
        } else {
            let reason = if has("index.json")? {
                "it has an index.json but no oci-layout"
            } else {
                "it has neither oci-layout and index.json (OCI layout) nor manifest.json or repositories \
                 (docker archive)"
            };
            return Err(Error::NotAnArchive { archive: files.shown().into(), reason: reason.into() });
        };
        Ok(Self { files, format })
    }

    /// What form it has.
    pub fn format(&self) -> Format {
        self.format
    }

    /// All images in it. Where an image is there for several platforms, the one for `platform` (the host's own
    /// without) is taken; attestations, signatures and what else is no image are left alone.
    ///
    /// # Errors
    /// Something is damaged or missing, or there is nothing for the platform.
    pub fn images(&self, platform: Option<&Platform>) -> Result<Vec<Image>> {
        let images = match self.format {
            Format::OciLayout => layout::images(&self.files, platform)?,
            Format::DockerArchive => docker::images(&self.files)?,
            Format::DockerLegacy => legacy::images(&self.files)?,
        };
        let Some(wanted) = platform else { return Ok(images) };
        let fits = |image: &Image| image.platform.as_ref().is_none_or(|p| wanted.accepts(p));
        if !images.is_empty() && !images.iter().any(fits) {
            let offered = images.iter().filter_map(|image| Some(image.platform.as_ref()?.to_string()));
            return Err(Error::no_platform(self.files.shown(), wanted, offered));
        }
        Ok(images.into_iter().filter(fits).collect())
    }
}

/// The first block of an input, and the whole of it again.
fn begin(mut input: impl Read, shown: &str) -> Result<(Vec<u8>, impl Read)> {
    let mut head = Vec::with_capacity(tarball::BLOCK as usize);
    let read = input.by_ref().take(tarball::BLOCK).read_to_end(&mut head);
    read.map_err(Error::io(format!("read {shown}")))?;
    Ok((head.clone(), io::Cursor::new(head).chain(input)))
}

/// The tar in a compressed input, in a file without a name.
fn decompressed(input: impl Read, spool: &Path, shown: &str) -> Result<File> {
    let plain = compression::Decoder::new(input).map_err(Error::io(format!("read {shown}")))?;
    let (head, plain) = begin(plain, shown)?;
    tarball::check_beginning(&head, shown)?;
    spool::fill(plain, spool, shown)
}

/// Fails for what begins neither as a tar nor as one that is compressed.
fn check_head(head: &[u8], shown: &str) -> Result<()> {
    if head.is_empty() {
        return Err(Error::NotAnArchive { archive: shown.into(), reason: "it is empty".into() });
    }
    if let Some(other) = unknown_compression(head) {
        return Err(Error::unsupported(shown, format!("it is compressed with {other}")));
    }
    match compression::detect(head) {
        compression::Compression::None => tarball::check_beginning(head, shown),
        _ => Ok(()),
    }
}

/// Compressions that tars come in and that are not read here.
fn unknown_compression(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 4] =
        [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4"), (b"PK\x03\x04", "zip")];
    MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

/// Sorts texts into names of images and others, each once. A digest in a name is believed only of what was verified: docker archives tell none.
fn names<'a>(texts: impl IntoIterator<Item = &'a str>, verified: bool) -> (Vec<ImageName>, Vec<String>) {
    let (mut names, mut others) = (Vec::new(), Vec::new());
    for text in texts {
        match text.parse::<ImageName>().ok().filter(|name| verified || name.digest().is_none()) {
            Some(name) if !names.contains(&name) => names.push(name),
            Some(_) => {}
            None if !others.iter().any(|other| other == text) => others.push(text.to_owned()),
            None => {}
        }
    }
    (names, others)
}
