//! From a layer's tar to a [`Target`], with everything checked on the way.
//!
//! # Names
//!
//! A name is taken from the layer's root, with or without a slash at its start. Empty parts and `.` fall away; `..` takes a
//! part back as text, and one that would leave the layer is refused. Links' texts are never looked at; the targets of hard
//! links are names like others.
//!
//! # Whiteouts
//!
//! | entry | means |
//! |---|---|
//! | `DIR/.wh.NAME` | what lower layers have at `DIR/NAME` is hidden |
//! | `DIR/.wh..wh..opq` | all that lower layers have in `DIR` is hidden |
//! | other `.wh..wh.*`, and what lies below | housekeeping of aufs (`plnk`, `orph`, `aufs`): passed over |
//! | `.wh.`, `.wh..`, `.wh...`, entries below a `.wh.NAME` | refused |
//!
//! # Verification
//!
//! The diff ID is of every byte of the input, those after the archive's end too. The recipe and the manifest are
//! written as the archive is read.

mod names;
mod source;

use crate::manifest::{self, Facts, What};
use crate::recipe;
use crate::tar::{EntryKind, Header, Limits, Problem, Reader, Tap, TarError, shown};
use crate::target::{FileData, Finished, Kept, LayerPath, Meta, Node, Target, TargetError};
use names::{Meaning, Seen, clean, meaning};
use source::{Hasher, Source};
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use vellum_types::DiffId;

/// The most bytes of names of entries that the target could not keep: they are all reported.
const MOST_LEFT_OUT: usize = 16 << 20;

/// Gives the file that the content of an entry is read from, if the target may have it. See [`FileData::twin`].
pub type Twins<'a> = dyn Fn(&LayerPath) -> Option<File> + 'a;

/// How to apply.
#[derive(Default)]
pub struct ApplyOptions<'a> {
    /// What the archive may ask for.
    pub limits: Limits,
    /// Where the recipe goes ([`crate::recipe`]).
    pub recipe: Option<&'a mut (dyn Write + Send)>,
    /// Where the manifest goes ([`crate::manifest`]).
    pub manifest: Option<&'a mut (dyn Write + Send)>,
    /// Hash in a thread of its own: for large layers when a processor is free.
    pub hash_thread: bool,
    /// For an archive that is being written of files which the target may have: asked once for each file, in the archive's order.
    pub twins: Option<&'a Twins<'a>>,
}

impl std::fmt::Debug for ApplyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyOptions").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the whole input.
    pub diff_id: DiffId,
    /// The size of the whole input.
    pub tar_size: u64,
    /// The entries in it, extension headers not counted.
    pub entries: u64,
    /// The sizes of its files, added up: what docker calls a layer's size.
    pub content: u64,
    /// What the target reports.
    pub finished: Finished,
    /// What the target could not keep, and why.
    pub left_out: Vec<(LayerPath, &'static str)>,
}

/// Why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The archive is damaged, asks for too much, or means something outside of the layer.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The recipe or the manifest could not be written.
    #[error("cannot write the layer's {what}")]
    Record {
        /// `recipe` or `manifest`.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn record(what: &'static str) -> impl FnOnce(io::Error) -> ApplyError {
    move |source| ApplyError::Record { what, source }
}

type Manifest<'a> = manifest::Writer<&'a mut (dyn Write + Send)>;

/// The recipe as it is written; gone while it is being changed, and when none is wanted.
struct Recipe<'a>(Option<recipe::Writer<'a>>);

impl Tap for Recipe<'_> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |writer| writer.raw(bytes))
    }
}

/// Reads the plain tar `input` to its end and gives its entries to `target`.
///
/// # Errors
/// See [`ApplyError`]. The target is dropped then: what it made is the caller's to remove.
pub fn apply(
    input: impl Read,
    target: Box<dyn Target>,
    options: ApplyOptions<'_>,
) -> Result<Applied, ApplyError> {
    if !options.hash_thread {
        return run(Source::new(input, Hasher::inline()), target, options);
    }
    std::thread::scope(|scope| {
        let hasher = Hasher::threaded(scope);
        run(Source::new(input, hasher), target, options)
    })
}

fn run<R: Read>(
    source: Source<'_, R>,
    target: Box<dyn Target>,
    options: ApplyOptions<'_>,
) -> Result<Applied, ApplyError> {
    let recipe = options.recipe.map(recipe::Writer::new).transpose().map_err(record("recipe"))?;
    let manifest = options.manifest.map(manifest::Writer::new).transpose().map_err(record("manifest"))?;
    let mut applier = Applier {
        seen: recipe.is_some().then(Seen::default),
        reader: Reader::with_tap(source, options.limits, Recipe(recipe)),
        target,
        manifest,
        twins: options.twins,
        left_out: Vec::new(),
        left_out_bytes: 0,
        content: 0,
    };
    let mut entries = 0;
    while let Some(header) = applier.reader.next_entry()? {
        entries += 1;
        applier.entry(header)?;
    }
    let Applier { reader, target, manifest, left_out, content, .. } = applier;
    let (source, recipe) = reader.into_parts();
    let (digest, tar_size) = source.finish();
    let diff_id = DiffId::from(digest);
    let finished = target.finish()?;
    if let Some(recipe) = recipe.0 {
        recipe.finish(tar_size, &diff_id).map_err(record("recipe"))?;
    }
    if let Some(mut manifest) = manifest {
        for dir in &finished.joints.implied {
            manifest.entry(dir, &What::ImpliedDir, &Facts::default()).map_err(record("manifest"))?;
        }
        manifest.finish().map_err(record("manifest"))?;
    }
    Ok(Applied { diff_id, tar_size, entries, content, finished, left_out })
}

struct Applier<'s, 'a, R: Read> {
    reader: Reader<Source<'s, R>, Recipe<'a>>,
    target: Box<dyn Target>,
    manifest: Option<Manifest<'a>>,
    twins: Option<&'a Twins<'a>>,
    /// Names so far; only wanted for the recipe.
    seen: Option<Seen>,
    left_out: Vec<(LayerPath, &'static str)>,
    /// Bytes of names in it.
    left_out_bytes: usize,
    content: u64,
}

impl<R: Read> Applier<'_, '_, R> {
    fn entry(&mut self, header: Header) -> Result<(), ApplyError> {
        let fail = |problem| TarError {
            offset: header.offset,
            entry: Some(shown(&header.path)),
            problem,
            source: None,
        };
        let path = clean(&header.path).map_err(|reason| fail(Problem::Name(reason)))?;
        match meaning(&path).map_err(|reason| fail(Problem::Whiteout(reason)))? {
            Meaning::Entry => {}
            Meaning::Nothing => return Ok(()),
            Meaning::Whiteout(hidden) => {
                self.target.whiteout(&hidden)?;
                return self.note(&hidden, &What::Whiteout, &Meta::default());
            }
            Meaning::Opaque(dir) => {
                self.target.opaque(&dir)?;
                return self.note(&dir, &What::Opaque, &Meta::default());
            }
        }
        if path.is_root() && header.kind != EntryKind::Dir {
            return Err(fail(Problem::Name("only a directory can be the root")).into());
        }
        let link = match header.kind {
            EntryKind::HardLink => {
                let link = clean(&header.link).map_err(|reason| fail(Problem::Link(reason)))?;
                if link.is_root() {
                    return Err(fail(Problem::Link("the root is no file")).into());
                }
                Some(link)
            }
            EntryKind::Symlink if header.link.is_empty() => {
                return Err(fail(Problem::Link("it is empty")).into());
            }
            _ => None,
        };
        self.before(&path, header.kind == EntryKind::Dir)?;
        if self.left_out_bytes > MOST_LEFT_OUT {
            return Err(fail(Problem::Limit("names of entries that cannot be kept")).into());
        }
        self.give(&path, header, link)
    }

    fn note(&mut self, path: &LayerPath, what: &What, meta: &Meta) -> Result<(), ApplyError> {
        match &mut self.manifest {
            Some(writer) => writer.entry(path, what, &Facts::from(meta)).map_err(record("manifest")),
            None => Ok(()),
        }
    }

    /// Saves for the recipe what this entry may replace.
    fn before(&mut self, path: &LayerPath, directory: bool) -> Result<(), ApplyError> {
        let Some(seen) = &mut self.seen else { return Ok(()) };
        for replaced in seen.entry(path, directory) {
            let recipe = &mut self.reader.tap().0;
            let mut save = |path: &LayerPath, content: &mut dyn Read| {
                if let Some(writer) = recipe.take() {
                    *recipe = Some(writer.save(path, content)?);
                }
                Ok(())
            };
            self.target.replaced(&replaced, &mut save)?;
        }
        Ok(())
    }

    fn give(&mut self, path: &LayerPath, header: Header, link: Option<LayerPath>) -> Result<(), ApplyError> {
        let meta = Meta {
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            xattrs: header.xattrs,
        };
        let (major, minor) = header.device;
        let special = match header.kind {
            EntryKind::File => {
                let extents = header.extents;
                return self.file(path, &meta, header.size, header.stored, extents);
            }
            EntryKind::Dir => {
                self.target.dir(path, &meta)?;
                return self.note(path, &What::Dir, &meta);
            }
            EntryKind::Symlink => {
                self.target.symlink(path, &meta, &header.link)?;
                return self.note(path, &What::Symlink(header.link), &meta);
            }
            EntryKind::HardLink => {
                let to = link.unwrap_or_default();
                let kept = self.target.hard_link(path, &to)?;
                return self.kept(path, kept, &What::HardLink(to), &meta);
            }
            EntryKind::Char => Node::Char(major, minor),
            EntryKind::Block => Node::Block(major, minor),
            EntryKind::Fifo => Node::Fifo,
        };
        let kept = self.target.node(path, &meta, special)?;
        self.kept(path, kept, &What::Special(special), &meta)
    }

    fn kept(&mut self, path: &LayerPath, kept: Kept, what: &What, meta: &Meta) -> Result<(), ApplyError> {
        match kept {
            Kept::Yes => self.note(path, what, meta),
            Kept::LeftOut(reason) => {
                self.left_out_bytes += path.as_bytes().len() + size_of::<(LayerPath, &str)>();
                self.left_out.push((path.clone(), reason));
                self.note(path, &What::Absent, meta)
            }
        }
    }

    fn file(
        &mut self,
        path: &LayerPath,
        meta: &Meta,
        size: u64,
        stored: u64,
        extents: Option<Vec<(u64, u64)>>,
    ) -> Result<(), ApplyError> {
        if let Some(recipe) = &mut self.reader.tap().0
            && stored > 0
        {
            let whole = [(0, stored)];
            recipe.file(path, extents.as_deref().unwrap_or(&whole)).map_err(record("recipe"))?;
        }
        let hash = self.manifest.is_some().then(xxhash_rust::xxh3::Xxh3::new);
        let twin = self.twins.and_then(|twin_of| twin_of(path));
        let mut data = Data { reader: &mut self.reader, hash, twin, taken: 0, end: 0 };
        self.target.file(path, meta, size, &mut data)?;
        data.hole(size);
        let (taken, hash) = (data.taken, data.hash.map_or(0, |hash| hash.digest128()));
        if taken != stored {
            let source = io::Error::other("the target has not taken all of the file");
            return Err(TargetError { operation: "keep".into(), path: path.clone(), source }.into());
        }
        self.content = self.content.saturating_add(size);
        self.note(path, &What::File(size, hash), meta)
    }
}

/// A file's data on its way to the target, hashed for the manifest.
struct Data<'d, 's, 'a, R: Read> {
    reader: &'d mut Reader<Source<'s, R>, Recipe<'a>>,
    hash: Option<xxhash_rust::xxh3::Xxh3>,
    twin: Option<File>,
    taken: u64,
    /// Where in the file the data handed out so far ends.
    end: u64,
}

impl<R: Read> Data<'_, '_, '_, R> {
    /// The file goes on at `to`: a hole is zeros to the hash.
    fn hole(&mut self, to: u64) {
        static ZEROS: [u8; 65536] = [0; 65536];
        if let Some(hash) = &mut self.hash {
            while self.end < to {
                let part = usize::try_from(to - self.end).unwrap_or(usize::MAX).min(ZEROS.len());
                hash.update(&ZEROS[..part]);
                self.end += part as u64;
            }
        }
        self.end = self.end.max(to);
    }
}

impl<R: Read> Read for Data<'_, '_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let chunk = self.reader.fill_buf()?;
        let part = chunk.len().min(buffer.len());
        buffer[..part].copy_from_slice(&chunk[..part]);
        self.consume(part);
        Ok(part)
    }
}

impl<R: Read> BufRead for Data<'_, '_, '_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Some(hash) = &mut self.hash
            && let Ok(chunk) = self.reader.fill_buf()
        {
            hash.update(&chunk[..count]);
        }
        self.reader.consume(count);
        self.taken += count as u64;
        self.end += count as u64;
    }
}

impl<R: Read> FileData for Data<'_, '_, '_, R> {
    fn next_extent(&mut self) -> io::Result<Option<(u64, u64)>> {
        let next = self.reader.next_extent()?;
        if let Some((offset, _)) = next {
            self.hole(offset);
        }
        Ok(next)
    }

    fn twin(&mut self) -> Option<File> {
        self.twin.take()
    }
}
