//! Recipes: how to give a layer's tar back, bit for bit, from the layer's files.
//!
//! ```text
//!   "VLMRCP" version(2)
//!   zstd frame(s)    records: 1 length bytes           as they were in the archive: headers, padding, the end
//!                             2 path runs              from the file `path` of the final tree, these runs
//!                             3                        the end
//!   zstd frame       the content of a file that a later entry replaced   ┐ may come between the
//!   zstd frame(s)    more records                                        ┘ others, many times
//!   saved            for each such content: path hash(16) before(8) start(8) end(8)
//!   trailer          hash of `saved`(16) entries of it(8) tar size(8) SHA-256 of the tar(32) "VLMRCPE\n"
//! ```
//!
//! A record 2 is the n-th file of the archive. Its content was saved if there is an entry in `saved` for its path
//! with `before` > n; the one with the smallest is it. Numbers in the records are of variable length, others little-endian.
//!
//! What a recipe cannot give is found by the digest: [`assemble`] compares it with the one of the tar that was read.

use crate::target::LayerPath;
use crate::wire::{Counting, compressor, damaged, get, get_bytes, put, put_bytes};
use sha2::Digest as _;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt as _;
use vellum_types::{DiffId, Digest};

const MAGIC: [u8; 8] = *b"VLMRCP\x00\x01";
const END: [u8; 8] = *b"VLMRCPE\n";
const TRAILER: u64 = 16 + 8 + 8 + 32 + 8;
const SAVED: u64 = 16 + 8 + 8 + 8;
const RAW: u8 = 1;
const FILE: u8 = 2;
const STOP: u8 = 3;
/// Raw bytes are gathered up to this.
const GATHER: usize = 32 << 10;

/// Why a tar could not be given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The recipe itself cannot be read.
    #[error("the recipe is damaged or cannot be read")]
    Recipe(#[source] io::Error),
    /// A file of the layer cannot be read, or is shorter than it was.
    #[error("cannot read {path} of the layer")]
    File {
        /// The file.
        path: LayerPath,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output failed.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The layer's files have changed since: what was written is not the archive.
    #[error("the archive given back is {found}, not {expected}: files of the layer have changed")]
    Different {
        /// What it should be.
        expected: Box<DiffId>,
        /// What it is.
        found: Box<DiffId>,
    },
}

struct Saved {
    path: u128,
    before: u64,
    start: u64,
    end: u64,
}

fn path_hash(path: &LayerPath) -> u128 {
    xxhash_rust::xxh3::xxh3_128(path.as_bytes())
}

/// Writes a recipe while an archive is read.
pub(crate) struct Writer<'a> {
    encoder: zstd::Encoder<'static, Counting<'a>>,
    raw: Vec<u8>,
    record: Vec<u8>,
    files: u64,
    saved: Vec<Saved>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut (dyn Write + Send)) -> io::Result<Self> {
        let mut out = Counting { out, count: 0 };
        out.write_all(&MAGIC)?;
        let encoder = compressor(out)?;
        Ok(Self { encoder, raw: Vec::with_capacity(GATHER), record: Vec::new(), files: 0, saved: Vec::new() })
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(GATHER) {
            if self.raw.len() + part.len() > GATHER {
                self.settle()?;
            }
            self.raw.extend_from_slice(part);
        }
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.record.clear();
        self.record.push(RAW);
        put(&mut self.record, self.raw.len() as u64);
        self.encoder.write_all(&self.record)?;
        self.encoder.write_all(&self.raw)?;
        self.raw.clear();
        Ok(())
    }

    /// What follows in the archive are these runs of a file.
    pub(crate) fn file(&mut self, path: &LayerPath, runs: &[(u64, u64)]) -> io::Result<()> {
        self.settle()?;
        self.record.clear();
        self.record.push(FILE);
        put_bytes(&mut self.record, path.as_bytes());
        put(&mut self.record, runs.len() as u64);
        for (offset, length) in runs {
            put(&mut self.record, *offset);
            put(&mut self.record, *length);
        }
        self.files += 1;
        self.encoder.write_all(&self.record)
    }

    /// Keeps the content of a file that is about to be replaced.
    pub(crate) fn save(mut self, path: &LayerPath, content: &mut dyn Read) -> io::Result<Self> {
        self.settle()?;
        let out = self.encoder.finish()?;
        let start = out.count;
        let mut encoder = compressor(out)?;
        io::copy(content, &mut encoder)?;
        let out = encoder.finish()?;
        self.saved.push(Saved { path: path_hash(path), before: self.files, start, end: out.count });
        self.encoder = compressor(out)?;
        Ok(self)
    }

    pub(crate) fn finish(mut self, tar_size: u64, diff_id: &DiffId) -> io::Result<()> {
        self.settle()?;
        self.encoder.write_all(&[STOP])?;
        let mut out = self.encoder.finish()?;
        let mut table = Vec::with_capacity(self.saved.len() * SAVED as usize);
        for saved in &self.saved {
            table.extend_from_slice(&saved.path.to_le_bytes());
            for number in [saved.before, saved.start, saved.end] {
                table.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.write_all(&table)?;
        out.write_all(&xxhash_rust::xxh3::xxh3_128(&table).to_le_bytes())?;
        out.write_all(&(self.saved.len() as u64).to_le_bytes())?;
        out.write_all(&tar_size.to_le_bytes())?;
        out.write_all(diff_id.digest().as_bytes())?;
        out.write_all(&END)?;
        out.flush()
    }
}

/// What the end of a recipe says.
struct Trailer {
    saved: Vec<Saved>,
    end: u64,
    tar_size: u64,
    diff_id: DiffId,
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn wide(bytes: &[u8]) -> u128 {
    u128::from(word(&bytes[..8])) | u128::from(word(&bytes[8..16])) << 64
}

impl Trailer {
    fn read(recipe: &File) -> io::Result<Self> {
        let size = recipe.metadata()?.len();
        let mut magic = [0; 8];
        recipe.read_exact_at(&mut magic, 0)?;
        if magic[..6] == MAGIC[..6] && magic != MAGIC {
            return Err(damaged("written by a newer version"));
        }
        let at = size.checked_sub(TRAILER).ok_or_else(|| damaged("too short"))?;
        let mut trailer = [0; TRAILER as usize];
        recipe.read_exact_at(&mut trailer, at)?;
        if magic != MAGIC || trailer[64..] != END {
            return Err(damaged("not a whole recipe"));
        }
        let count = word(&trailer[16..24]);
        let length = count.checked_mul(SAVED).filter(|length| *length <= at);
        let length = length.ok_or_else(|| damaged("the table of saved files is too long"))?;
        let end = at - length;
        let mut table = vec![0; usize::try_from(length).unwrap_or(0)];
        recipe.read_exact_at(&mut table, end)?;
        if xxhash_rust::xxh3::xxh3_128(&table) != wide(&trailer[..16]) {
            return Err(damaged("the table of saved files does not fit its hash"));
        }
        let saved = table
            .chunks_exact(SAVED as usize)
            .map(|row| Saved {
                path: wide(row),
                before: word(&row[16..24]),
                start: word(&row[24..32]),
                end: word(&row[32..40]),
            })
            .collect();
        let mut digest = [0; 32];
        digest.copy_from_slice(&trailer[32..64]);
        Ok(Self { saved, end, tar_size: word(&trailer[24..32]), diff_id: Digest::from_sha256(digest).into() })
    }
}

/// Reads parts of a file, one after the other, by their offsets.
struct Parts<'a> {
    file: &'a File,
    parts: std::vec::IntoIter<(u64, u64)>,
    now: (u64, u64),
}

impl<'a> Parts<'a> {
    fn new(file: &'a File, parts: Vec<(u64, u64)>) -> Self {
        Self { file, parts: parts.into_iter(), now: (0, 0) }
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.0 >= self.now.1 {
            match self.parts.next() {
                Some(part) => self.now = part,
                None => return Ok(0),
            }
        }
        let most = usize::try_from(self.now.1 - self.now.0).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.file.read_at(&mut buffer[..most], self.now.0)?;
        if got == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.now.0 += got as u64;
        Ok(got)
    }
}

/// The tar's digest and size, as the recipe has them.
///
/// # Errors
/// [`RecipeError::Recipe`].
pub fn describe(recipe: &File) -> Result<(DiffId, u64), RecipeError> {
    let trailer = Trailer::read(recipe).map_err(RecipeError::Recipe)?;
    Ok((trailer.diff_id, trailer.tar_size))
}

/// Writes the tar of a layer to `out`, bit for bit as it came. `open` opens a regular file of the layer's final tree.
///
/// # Errors
/// See [`RecipeError`]; after [`RecipeError::Different`] everything was written, but it is not the layer's tar.
pub fn assemble(
    recipe: &File,
    open: &mut dyn FnMut(&LayerPath) -> io::Result<File>,
    out: &mut dyn Write,
) -> Result<(DiffId, u64), RecipeError> {
    let trailer = Trailer::read(recipe).map_err(RecipeError::Recipe)?;
    let mut out = Output { out, hasher: sha2::Sha256::new(), size: 0, buffer: vec![0; 128 << 10] };
    let mut parts = Vec::new();
    let mut from = MAGIC.len() as u64;
    for saved in &trailer.saved {
        parts.push((from, saved.start));
        from = saved.end;
    }
    parts.push((from, trailer.end));
    // By path, in the order in which they were saved: an archive may name one path as often as it has entries.
    let mut by_path: HashMap<u128, Vec<&Saved>> = HashMap::new();
    for saved in &trailer.saved {
        by_path.entry(saved.path).or_default().push(saved);
    }
    let decoder = zstd::Decoder::new(Parts::new(recipe, parts)).map_err(RecipeError::Recipe)?;
    let mut records = BufReader::new(decoder);
    let mut number = 0;
    loop {
        let mut tag = [0];
        records.read_exact(&mut tag).map_err(RecipeError::Recipe)?;
        match tag[0] {
            RAW => {
                let length = get(&mut records).map_err(RecipeError::Recipe)?;
                out.copy(&mut records, length, &RecipeError::Recipe)?;
            }
            FILE => {
                let (path, runs) = file_record(&mut records).map_err(RecipeError::Recipe)?;
                let saves = if by_path.is_empty() { None } else { by_path.get(&path_hash(&path)) };
                let saved = saves.and_then(|s| s.get(s.partition_point(|s| s.before <= number)).copied());
                number += 1;
                match saved {
                    Some(saved) => out.saved(recipe, saved, &runs)?,
                    None => out.file(&path, open, &runs)?,
                }
            }
            STOP => break,
            _ => return Err(RecipeError::Recipe(damaged("an unknown record"))),
        }
    }
    let found = DiffId::from(Digest::from_sha256(out.hasher.finalize().into()));
    if found != trailer.diff_id {
        return Err(RecipeError::Different { expected: Box::new(trailer.diff_id), found: Box::new(found) });
    }
    Ok((found, out.size))
}

fn file_record(records: &mut dyn Read) -> io::Result<(LayerPath, Vec<(u64, u64)>)> {
    let path = LayerPath::new(get_bytes(records, 4096)?).map_err(damaged)?;
    let count = get(records)?;
    let mut runs = Vec::new();
    for _ in 0..count {
        runs.push((get(records)?, get(records)?));
    }
    Ok((path, runs))
}

struct Output<'a> {
    out: &'a mut dyn Write,
    hasher: sha2::Sha256,
    size: u64,
    buffer: Vec<u8>,
}

impl Output<'_> {
    fn write(&mut self, length: usize) -> Result<(), RecipeError> {
        self.hasher.update(&self.buffer[..length]);
        self.size += length as u64;
        self.out.write_all(&self.buffer[..length]).map_err(RecipeError::Write)
    }

    fn copy(
        &mut self,
        from: &mut dyn Read,
        mut left: u64,
        error: &dyn Fn(io::Error) -> RecipeError,
    ) -> Result<(), RecipeError> {
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            from.read_exact(&mut self.buffer[..part]).map_err(error)?;
            self.write(part)?;
            left -= part as u64;
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &LayerPath,
        open: &mut dyn FnMut(&LayerPath) -> io::Result<File>,
        runs: &[(u64, u64)],
    ) -> Result<(), RecipeError> {
        let error = |source| RecipeError::File { path: path.clone(), source };
        let file = open(path).map_err(error)?;
        for (offset, length) in runs {
            let part = (*offset, offset.saturating_add(*length));
            self.copy(&mut Parts::new(&file, vec![part]), *length, &error)?;
        }
        Ok(())
    }

    fn saved(&mut self, recipe: &File, saved: &Saved, runs: &[(u64, u64)]) -> Result<(), RecipeError> {
        let frame = Parts::new(recipe, vec![(saved.start, saved.end)]);
        let mut content = zstd::Decoder::new(frame).map_err(RecipeError::Recipe)?;
        let mut position = 0;
        for (offset, length) in runs {
            let skip = offset
                .checked_sub(position)
                .ok_or_else(|| RecipeError::Recipe(damaged("runs of a saved file are out of order")))?;
            let skipped = io::copy(&mut (&mut content).take(skip), &mut io::sink());
            skipped.map_err(RecipeError::Recipe)?;
            self.copy(&mut content, *length, &RecipeError::Recipe)?;
            position = offset + length;
        }
        Ok(())
    }
}
