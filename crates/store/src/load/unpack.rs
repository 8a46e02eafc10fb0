//! One layer, from its blob to the driver's folder.

use super::ahead::read_ahead;
use super::{Job, Load};
use crate::catalog::{Durability, layers};
use crate::faults::point;
use crate::layerfiles::LayerFile;
use crate::{BlobFacts, Code, Error, Progress, Result, Store};
use sha2::{Digest as _, Sha256, Sha512};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use vellum_archive::apply::{ApplyOptions, Twins, apply};
use vellum_archive::compression::Decoder;
use vellum_archive::digest::HashingWriter;
use vellum_archive::target::{Finished, LayerPath};
use vellum_driver::CreateSpec;
use vellum_types::{Algorithm, DiffId, Digest, LayerId};

/// A layer that is unpacked, not joined yet.
pub(super) struct Unpacked {
    pub(super) id: LayerId,
    pub(super) filled: Filled,
    pub(super) blob: Option<Kept>,
    /// The damaged layer whose place it takes.
    pub(super) mends: Option<layers::Layer>,
}

/// A blob that was copied into `tmp/`.
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) facts: BlobFacts,
}

fn temporary(load: &Load<'_>, index: usize) -> PathBuf {
    load.store.layout.tmp().join(format!("{}{index}", load.owner.temporary_prefix()))
}

/// A layer that was filled from a tar.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) diff_id: DiffId,
    pub(crate) tar_size: u64,
    /// The sizes of its files, added up.
    pub(crate) content: u64,
    pub(crate) finished: Finished,
    pub(crate) left_out: Vec<(LayerPath, String)>,
    /// The digest of the recipe's file: the recipe itself is only compared when the tar is given back.
    pub(crate) recipe: Digest,
}

/// Applies a tar to an active layer, writing its recipe and its manifest beside it. `twins`: where files of the tar are that the driver may have, if there are any.
pub(crate) fn apply_stream(
    store: &Store,
    id: LayerId,
    input: &mut dyn Read,
    twins: Option<&Twins<'_>>,
) -> Result<Filled> {
    let folder = store.layout.layer(store.driver.name(), id);
    let create = |name: &str| {
        let path = folder.join(name);
        vellum_sys::file::create(rustix::fs::CWD, &path, 0o600)
            .map(|file| BufWriter::with_capacity(64 << 10, file))
            .map_err(|e| Error::io("make", path, e))
    };
    let (mut recipe, mut manifest) = (HashingWriter::new(create("recipe")?), create("manifest")?);
    let target = store.driver.target(id)?;
    let options = ApplyOptions {
        recipe: Some(&mut recipe),
        manifest: Some(&mut manifest),
        twins,
        ..ApplyOptions::default()
    };
    let applied = apply(input, target, options).map_err(|e| {
        let code = code_of_chain(&e);
        Error::caused(code, "unpack the archive", e)
    })?;
    let (digest, _, recipe) = recipe.finish();
    for (name, mut file) in [("recipe", recipe), ("manifest", manifest)] {
        file.flush().map_err(|e| Error::io("write", folder.join(name), e))?;
    }
    Ok(Filled {
        diff_id: applied.diff_id,
        tar_size: applied.tar_size,
        content: applied.content,
        finished: applied.finished,
        left_out: applied.left_out.into_iter().map(|(path, why)| (path, why.to_owned())).collect(),
        recipe: digest,
    })
}

impl Store {
    /// Joins a layer that was filled to its parent.
    pub(crate) fn join_filled(
        &self,
        id: LayerId,
        parent: Option<LayerId>,
        filled: &mut Filled,
    ) -> Result<()> {
        let _ = self.driver.commit(id, parent, &filled.finished.joints)?;
        if filled.finished.joints.bring_more() {
            filled.finished.usage = self.driver.usage(id)?;
        }
        Ok(())
    }
}

/// No space is told as that, wherever below it happened; what else goes wrong with an archive is the archive's fault, unless the
/// system said so.
fn code_of_chain(error: &(dyn std::error::Error + 'static)) -> Code {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return match crate::error::code_of(io) {
                // Errors that the archive's readers make have no number of the system.
                _ if io.raw_os_error().is_none() && io.get_ref().is_none_or(|e| e.source().is_none()) => {
                    if io.kind() == std::io::ErrorKind::StorageFull { Code::Full } else { Code::Archive }
                }
                Code::NotFound | Code::Exists => Code::System,
                code => code,
            };
        }
        next = error.source();
    }
    Code::Archive
}

/// A compression that is not known is no damage.
pub(crate) fn not_decompressed(operation: &str, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::Unsupported {
        return Error::caused(Code::Unsupported, operation, error).with_hint("decompress it first");
    }
    Error::caused(Code::Archive, operation, error)
}

impl Load<'_> {
    /// Makes the layer and fills it. The caller has the intent.
    pub(super) fn unpack(&self, job: &Job<'_>, id: LayerId, parent: Option<LayerId>) -> Result<Unpacked> {
        let store = self.store;
        let facts = job.source.blob();
        self.progress.layer_started(job.index, &job.diff_id.to_string(), facts.as_ref().and_then(|f| f.size));
        store.make_layer_folder(store.driver.name(), id)?;
        store.create_layer(id, &CreateSpec { parent, view: false, options: &[] })?;
        point("store.load.created")?;
        let mut blob =
            BlobReader::open(self, job, facts, self.keep_blobs.then(|| temporary(self, job.index)))?;
        let mut decoder = Decoder::new(&mut blob).map_err(|e| not_decompressed("decompress the layer", e))?;
        let fill = |tar: &mut dyn Read| {
            let filled = apply_stream(store, id, tar, None)?;
            // What follows the archive inside the compressed stream belongs to the blob.
            std::io::copy(tar, &mut std::io::sink())
                .map_err(|e| Error::caused(Code::Archive, "read the layer to its end", e))?;
            Ok::<_, Error>(filled)
        };
        let filled = if self.reads_ahead() {
            read_ahead(&mut decoder, fill)?
        } else {
            fill(&mut BufReader::with_capacity(256 << 10, &mut decoder))?
        };
        drop(decoder);
        if filled.diff_id != job.diff_id {
            return Err(Error::new(
                Code::Archive,
                "verify the layer",
                format!(
                    "its tar has the digest {}, and the image's configuration says {}",
                    filled.diff_id, job.diff_id
                ),
            ));
        }
        let kept = blob.finish()?;
        Ok(Unpacked { id, filled, blob: kept, mends: None })
    }

    /// Keeps the blob of a layer that the store already has without one.
    pub(super) fn keep_blob_of(&self, job: &Job<'_>, id: LayerId) -> Result<()> {
        let store = self.store;
        if !self.keep_blobs || store.catalog.read(|tx| layers::get(tx, id))?.is_none_or(|l| l.blob.is_some())
        {
            return Ok(());
        }
        let blob = BlobReader::open(self, job, job.source.blob(), Some(temporary(self, job.index)))?;
        let Some(kept) = blob.finish()? else { return Ok(()) };
        let _placing = crate::open::placing(&store.layout)?;
        self.place(&kept)?;
        let folder = crate::layout::open_folder(&store.layout.blobs())?;
        rustix::fs::fsync(&folder).map_err(|e| Error::io("sync", store.layout.blobs(), e))?;
        point("store.keep-blob.placed")?;
        store.catalog.write(Durability::Full, |tx| layers::set_blob(tx, id, &kept.facts))?;
        point("store.keep-blob.recorded")?;
        let folder = store.layout.layer(store.driver.name(), id);
        let file =
            store.catalog.read(|tx| layers::get(tx, id)?.map(|l| LayerFile::of(tx, &l)).transpose())?;
        if let Some(file) = file {
            file.write(&folder)?;
            crate::files::sync_folder(&folder, &[LayerFile::NAME])?;
        }
        Ok(())
    }

    /// Moves a kept blob to where it stays.
    pub(super) fn place(&self, kept: &Kept) -> Result<()> {
        let Some(digest) = kept.facts.digest else { return Ok(()) };
        let to = self.store.layout.blobs().join(digest.hex());
        std::fs::rename(&kept.path, &to).map_err(|e| Error::io("keep the blob", to, e))
    }
}

/// A hash of either kind.
enum Hasher {
    None,
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    fn update(&mut self, data: &[u8]) {
        match self {
            Self::None => {}
            Self::Sha256(hasher) => hasher.update(data),
            Self::Sha512(hasher) => hasher.update(data),
        }
    }

    fn finish(self) -> Option<Digest> {
        match self {
            Self::None => None,
            Self::Sha256(hasher) => Some(Digest::from_sha256(hasher.finalize().into())),
            Self::Sha512(hasher) => Some(Digest::from_sha512(hasher.finalize().into())),
        }
    }
}

/// Reads a blob: hashes it when its digest is declared or it is kept, copies it when it is kept, tells the progress, and
/// stops when the load has failed elsewhere.
struct BlobReader<'a> {
    input: Box<dyn Read + Send>,
    hasher: Hasher,
    facts: Option<BlobFacts>,
    copy: Option<(File, PathBuf)>,
    length: u64,
    index: usize,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

impl<'a> BlobReader<'a> {
    fn open(
        load: &'a Load<'_>,
        job: &Job<'_>,
        facts: Option<BlobFacts>,
        keep: Option<PathBuf>,
    ) -> Result<Self> {
        let input = job.source.open().map_err(|e| Error::caused(Code::System, "open the layer's blob", e))?;
        let hasher = match facts.as_ref().and_then(|f| f.digest).map(|d| d.algorithm()) {
            Some(Algorithm::Sha512) => Hasher::Sha512(Box::default()),
            Some(Algorithm::Sha256) => Hasher::Sha256(Sha256::new()),
            None if keep.is_some() => Hasher::Sha256(Sha256::new()),
            None => Hasher::None,
        };
        let copy = match keep {
            None => None,
            Some(path) => {
                // A retry of the same layer in the same load.
                crate::files::remove_any(&path)?;
                let file = vellum_sys::file::create(rustix::fs::CWD, &path, 0o600)
                    .map_err(|e| Error::io("make", &path, e))?;
                Some((file, path))
            }
        };
        Ok(Self {
            input,
            hasher,
            facts,
            copy,
            length: 0,
            index: job.index,
            progress: load.progress,
            cancel: &load.cancel,
        })
    }

    /// Reads the rest, and compares digest and length with what was declared.
    fn finish(mut self) -> Result<Option<Kept>> {
        std::io::copy(&mut self, &mut std::io::sink())
            .map_err(|e| Error::caused(Code::System, "read the layer's blob to its end", e))?;
        let declared = self.facts.as_ref();
        let wrong = |reason: String| Err(Error::new(Code::Archive, "verify the layer's blob", reason));
        if let Some(size) = declared.and_then(|f| f.size)
            && size != self.length
        {
            return wrong(format!("it has {} bytes, and its descriptor says {size}", self.length));
        }
        let digest = self.hasher.finish();
        if let (Some(declared), Some(digest)) = (declared.and_then(|f| f.digest), digest)
            && declared != digest
        {
            return wrong(format!("it has the digest {digest}, and its descriptor says {declared}"));
        }
        let Some((file, path)) = self.copy else { return Ok(None) };
        // The group's barrier brings it to the disk; the error of a full one is wanted now.
        rustix::fs::fdatasync(&file).map_err(|e| Error::io("write", &path, e))?;
        let media_type = declared.and_then(|f| f.media_type.clone());
        Ok(Some(Kept { path, facts: BlobFacts { digest, size: Some(self.length), media_type } }))
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the load has failed at another layer"));
        }
        let got = self.input.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        if let Some((file, _)) = &mut self.copy {
            file.write_all(&buffer[..got])?;
        }
        self.length += got as u64;
        if got > 0 {
            self.progress.bytes(self.index, got as u64);
        }
        Ok(got)
    }
}
