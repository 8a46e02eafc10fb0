//! What a layer's files are: written while a layer is unpacked, compared with the disk by `check`.
//!
//! A manifest lists, in the order of the archive, what the layer put on disk, with a fast digest of every file's content
//! (XXH3, 128 bits: it finds accidents, and is not a defence against somebody who can write to the store). It is one zstd stream:
//!
//! ```text
//! "VLMMAN1\n"
//! record*        kind byte, path, then what the kind has (see `Entry`); numbers as LEB128, texts with their length
//! end            byte 0, number of records, XXH3-64 of everything before it
//! ```
//!
//! The same path may come more than once; the last record counts, as in the archive. A manifest without its end is damaged.

mod borrowed;
mod plan;
mod verify;

pub use verify::{Finding, Open, Problem, Verified, VerifyError, verify};

use crate::target::{LayerPath, Node as Special, Time};
use std::io::{self, Read, Write};
use xxhash_rust::xxh3::Xxh3Default;

const MAGIC: &[u8; 8] = b"VLMMAN1\n";
const LONGEST_TEXT: u64 = 64 * 1024;

/// Owner, mode, time and attributes, as [`Meta`](crate::target::Meta) has them; the attributes as a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// [`attributes_digest`] of the attributes; 0 when there are none.
    pub attributes: u64,
}

impl From<&crate::target::Meta> for Facts {
    fn from(meta: &crate::target::Meta) -> Self {
        Self {
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            attributes: attributes_digest(&meta.xattrs),
        }
    }
}

/// A digest of sorted attributes; 0 for none.
pub fn attributes_digest(xattrs: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    if xattrs.is_empty() {
        return 0;
    }
    let mut hash = Xxh3Default::new();
    for part in xattrs.iter().flat_map(|(name, value)| [name, value]) {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest().max(1)
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A regular file: length, and XXH3-128 of its content with holes as zeros.
    File(u64, u128),
    /// A directory that the archive lists.
    Dir,
    /// A directory that it does not list: nothing of it is compared.
    ImpliedDir,
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A further name of a file of this layer or of one below.
    HardLink(LayerPath),
    /// A device, pipe or socket.
    Special(Special),
    /// Lower layers' entry is hidden.
    Whiteout,
    /// Lower layers' content of the directory is hidden.
    Opaque,
    /// Nothing: the archive has an entry that could not be kept, such as a device for a user without privileges. What came before
    /// it at the path is gone.
    Absent,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: LayerPath,
    /// What.
    pub what: What,
    /// Its facts; all zero for kinds that have none (links to files, implied directories, whiteouts, opaque marks).
    pub facts: Facts,
}

/// Writes a manifest.
pub struct Writer<W: Write> {
    out: zstd::Encoder<'static, W>,
    hash: Xxh3Default,
    record: Vec<u8>,
    count: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a manifest on `out`.
    ///
    /// # Errors
    /// Writing.
    pub fn new(out: W) -> io::Result<Self> {
        let mut this =
            Self { out: zstd::Encoder::new(out, 1)?, hash: Xxh3Default::new(), record: Vec::new(), count: 0 };
        this.record.extend_from_slice(MAGIC);
        this.flush_record()?;
        Ok(this)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Writing.
    pub fn entry(&mut self, path: &LayerPath, what: &What, facts: &Facts) -> io::Result<()> {
        let out = &mut self.record;
        out.push(kind(what));
        text(out, path.as_bytes());
        match what {
            What::File(size, hash) => {
                number(out, *size);
                out.extend_from_slice(&hash.to_le_bytes());
            }
            What::Symlink(to) => text(out, to),
            What::HardLink(to) => text(out, to.as_bytes()),
            What::Special(Special::Char(major, minor) | Special::Block(major, minor)) => {
                number(out, u64::from(*major));
                number(out, u64::from(*minor));
            }
            What::Special(_)
            | What::Dir
            | What::ImpliedDir
            | What::Whiteout
            | What::Opaque
            | What::Absent => {}
        }
        if has_facts(what) {
            for value in [facts.mode, facts.uid, facts.gid] {
                number(out, u64::from(value));
            }
            // Zigzag: small numbers stay short on both sides of 1970.
            number(out, ((facts.mtime.seconds << 1) ^ (facts.mtime.seconds >> 63)).cast_unsigned());
            number(out, u64::from(facts.mtime.nanoseconds));
            out.extend_from_slice(&facts.attributes.to_le_bytes());
        }
        self.count += 1;
        self.flush_record()
    }

    /// Ends the manifest and gives the output back.
    ///
    /// # Errors
    /// Writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.record.push(0);
        number(&mut self.record, self.count);
        self.flush_record()?;
        self.record.extend_from_slice(&self.hash.digest().to_le_bytes());
        self.out.write_all(&self.record)?;
        self.out.finish()
    }

    fn flush_record(&mut self) -> io::Result<()> {
        self.hash.update(&self.record);
        self.out.write_all(&self.record)?;
        self.record.clear();
        Ok(())
    }
}

/// Reads a manifest, record by record; ends with an error where it is damaged.
pub struct Reader<R: Read> {
    input: io::BufReader<zstd::Decoder<'static, io::BufReader<R>>>,
    hash: Xxh3Default,
    count: u64,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// Reading; it is not a manifest.
    pub fn new(input: R) -> io::Result<Self> {
        let input = io::BufReader::new(zstd::Decoder::new(input)?);
        let mut this = Self { input, hash: Xxh3Default::new(), count: 0, done: false };
        if &this.bytes::<8>()? != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        Ok(this)
    }

    fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let [kind] = self.bytes()?;
        if kind == 0 {
            let count = self.number()?;
            let expected = self.hash.digest();
            if count != self.count || u64::from_le_bytes(self.bytes()?) != expected {
                return Err(damaged("its checksum is wrong"));
            }
            return Ok(None);
        }
        self.count += 1;
        let path = self.path()?;
        let what = match kind {
            b'f' => What::File(self.number()?, u128::from_le_bytes(self.bytes()?)),
            b'd' => What::Dir,
            b'i' => What::ImpliedDir,
            b'l' => What::Symlink(self.text()?),
            b'h' => What::HardLink(self.path()?),
            b'c' => What::Special(Special::Char(self.small()?, self.small()?)),
            b'b' => What::Special(Special::Block(self.small()?, self.small()?)),
            b'p' => What::Special(Special::Fifo),
            b's' => What::Special(Special::Socket),
            b'w' => What::Whiteout,
            b'o' => What::Opaque,
            b'n' => What::Absent,
            _ => return Err(damaged("a record of an unknown kind")),
        };
        let mut facts = Facts::default();
        if has_facts(&what) {
            (facts.mode, facts.uid, facts.gid) = (self.small()?, self.small()?, self.small()?);
            let zigzag = self.number()?;
            facts.mtime.seconds = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
            facts.mtime.nanoseconds = self.small()?;
            facts.attributes = u64::from_le_bytes(self.bytes()?);
        }
        Ok(Some(Entry { path, what, facts }))
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.bytes()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged("a number without end"))
    }

    fn small(&mut self) -> io::Result<u32> {
        u32::try_from(self.number()?).map_err(|_| damaged("a number out of range"))
    }

    fn text(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        if length > LONGEST_TEXT {
            return Err(damaged("a text that is too long"));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged("a text that is too long"))?];
        self.input.read_exact(&mut bytes)?;
        self.hash.update(&bytes);
        Ok(bytes)
    }

    fn path(&mut self) -> io::Result<LayerPath> {
        LayerPath::new(self.text()?).map_err(damaged)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_entry();
        self.done = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the manifest is damaged: {what}"))
}

fn kind(what: &What) -> u8 {
    match what {
        What::File(..) => b'f',
        What::Dir => b'd',
        What::ImpliedDir => b'i',
        What::Symlink(_) => b'l',
        What::HardLink(_) => b'h',
        What::Special(Special::Char(..)) => b'c',
        What::Special(Special::Block(..)) => b'b',
        What::Special(Special::Fifo) => b'p',
        What::Special(Special::Socket) => b's',
        What::Whiteout => b'w',
        What::Opaque => b'o',
        What::Absent => b'n',
    }
}

fn has_facts(what: &What) -> bool {
    matches!(what, What::File(..) | What::Dir | What::Symlink(_) | What::Special(_))
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> LayerPath {
        LayerPath::new(text).unwrap()
    }

    fn entries() -> Vec<Entry> {
        let facts = Facts {
            mode: 0o4755,
            uid: 70_000,
            gid: u32::MAX,
            mtime: Time { seconds: -5, nanoseconds: 999_999_999 },
            attributes: attributes_digest(&[(b"user.a".to_vec(), b"b".to_vec())]),
        };
        let none = Facts::default();
        let entry = |name: &str, what, facts| Entry { path: path(name), what, facts };
        vec![
            entry("", What::Dir, facts),
            entry("a", What::ImpliedDir, none),
            entry("a/f", What::File(u64::MAX, 1 << 127), facts),
            entry("l", What::Symlink(b"../x".to_vec()), facts),
            entry("h", What::HardLink(path("a/f")), none),
            entry("c", What::Special(Special::Char(4095, 1 << 19)), facts),
            entry("b", What::Special(Special::Block(0, 1)), facts),
            entry("p", What::Special(Special::Fifo), facts),
            entry("w", What::Whiteout, none),
            entry("a", What::Opaque, none),
            entry("c", What::Absent, none),
        ]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        for entry in entries {
            writer.entry(&entry.path, &entry.what, &entry.facts).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = written(&entries());
        let read: Vec<Entry> = Reader::new(&bytes[..]).unwrap().collect::<io::Result<_>>().unwrap();
        assert_eq!(read, entries());
    }

    #[test]
    fn damage_is_found() {
        let plain = zstd::decode_all(&written(&entries())[..]).unwrap();
        let reads = |bytes: &[u8]| {
            let packed = zstd::encode_all(bytes, 1).unwrap();
            Reader::new(&packed[..]).and_then(|reader| reader.collect::<io::Result<Vec<_>>>())
        };
        assert!(reads(&plain).is_ok());
        for at in 0..plain.len() {
            assert!(reads(&plain[..at]).is_err(), "cut at {at}");
            let mut flipped = plain.clone();
            flipped[at] ^= 1;
            assert!(reads(&flipped).is_err(), "flipped at {at}");
        }
    }
}
