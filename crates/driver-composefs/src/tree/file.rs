//! The tree of a layer in a file.
//!
//! ```text
//! "VLMTREE1"     magic
//! count, object* the objects that the layer needs or has made, sorted, 32 bytes each; the count as 8 bytes, little-endian
//! entry          the root (see below)
//! checksum       XXH3-64 of everything before it
//!
//! entry          kind byte, then
//!   d  directory   attributes, 1 if it is opaque else 0, number of entries, and for each of them: name, entry
//!   i  file        attributes, content, with its length
//!   f  file        attributes, size, which object (its place in the list)
//!   l  link        attributes, text
//!   c b p s  node  attributes; major and minor number of devices
//!   h  hard link   which of the leaves that came before (counted from 0)
//!   w  whiteout
//! attributes     mode, uid, gid, seconds (zigzag), nanoseconds, number of attributes, and for each of them: name, value
//! ```
//!
//! Numbers are LEB128; names, texts and values have their length before them. The list comes first, so that collecting garbage reads nothing else.

use super::{Attr, Content, DEEPEST, Dir, Entry, Leaf, What};
use crate::digest::Digest;
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use vellum_archive::target::{Node, Time};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"VLMTREE1";

/// The file's bytes. `objects`: the list, sorted: all that the tree needs, and what else is to go with it.
pub(crate) fn write(root: &Dir, objects: &[Digest]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(objects.len() as u64).to_le_bytes());
    objects.iter().for_each(|digest| out.extend_from_slice(&digest.0));
    let mut writer = Writer { out, objects, leaves: HashMap::new() };
    writer.dir(root);
    let mut out = writer.out;
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

struct Writer<'a> {
    out: Vec<u8>,
    objects: &'a [Digest],
    /// Numbers of the leaves that were written, by address.
    leaves: HashMap<*const Leaf, u64>,
}

impl Writer<'_> {
    fn dir(&mut self, dir: &Dir) {
        self.out.push(b'd');
        self.attr(&dir.attr);
        self.out.push(u8::from(dir.opaque));
        self.number(dir.entries.len() as u64);
        for (name, entry) in &dir.entries {
            self.text(name);
            match entry {
                Entry::Dir(dir) => self.dir(dir),
                Entry::Leaf(leaf) => self.leaf(leaf),
                Entry::Whiteout => self.out.push(b'w'),
            }
        }
    }

    fn leaf(&mut self, leaf: &Arc<Leaf>) {
        let next = self.leaves.len() as u64;
        if let Some(number) = self.leaves.get(&Arc::as_ptr(leaf)).copied() {
            self.out.push(b'h');
            return self.number(number);
        }
        self.leaves.insert(Arc::as_ptr(leaf), next);
        self.out.push(match &leaf.what {
            What::File { content: Content::Inline(_), .. } => b'i',
            What::File { .. } => b'f',
            What::Symlink(_) => b'l',
            What::Node(Node::Char(..)) => b'c',
            What::Node(Node::Block(..)) => b'b',
            What::Node(Node::Fifo) => b'p',
            What::Node(Node::Socket) => b's',
        });
        self.attr(&leaf.attr);
        match &leaf.what {
            What::File { content: Content::Inline(bytes), .. } | What::Symlink(bytes) => self.text(bytes),
            What::File { size, content: Content::Object(digest) } => {
                self.number(*size);
                // It is there: the list has all objects of this tree.
                let place = self.objects.binary_search(digest).unwrap_or_else(|place| place);
                self.number(place as u64);
            }
            What::Node(Node::Char(major, minor) | Node::Block(major, minor)) => {
                self.number(u64::from(*major));
                self.number(u64::from(*minor));
            }
            What::Node(Node::Fifo | Node::Socket) => {}
        }
    }

    fn attr(&mut self, attr: &Attr) {
        for value in [attr.mode, attr.uid, attr.gid] {
            self.number(u64::from(value));
        }
        self.number(((attr.mtime.seconds << 1) ^ (attr.mtime.seconds >> 63)).cast_unsigned());
        self.number(u64::from(attr.mtime.nanoseconds));
        self.number(attr.xattrs().len() as u64);
        for (name, value) in attr.xattrs() {
            self.text(name);
            self.text(value);
        }
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn text(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the tree's file is damaged: {what}"))
}

/// The list of objects at the beginning of a file.
///
/// # Errors
/// Reading; it does not begin as one.
pub(crate) fn objects_in(input: &mut dyn Read) -> io::Result<Vec<Digest>> {
    let mut head = [0; 16];
    input.read_exact(&mut head)?;
    let count = u64::from_le_bytes(head[8..].try_into().map_err(|_| damaged("its head"))?);
    if &head[..8] != MAGIC || count > u64::from(u32::MAX) {
        return Err(damaged("its head"));
    }
    let mut bytes = Vec::new();
    let length = count * 32;
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(damaged("it ends early"));
    }
    let digest = |chunk: &[u8]| Digest(chunk.try_into().unwrap_or_default());
    Ok(bytes.chunks_exact(32).map(digest).collect())
}

/// What the root of the tree in a file has. Its checksum is not looked at.
///
/// # Errors
/// Reading; it does not begin as one.
pub(crate) fn root_attr<F: Read + io::Seek>(file: &mut F) -> io::Result<Attr> {
    let mut head = [0; 16];
    file.read_exact(&mut head)?;
    let count = u64::from_le_bytes(head[8..].try_into().map_err(|_| damaged("its head"))?);
    if &head[..8] != MAGIC || count > u64::from(u32::MAX) {
        return Err(damaged("its head"));
    }
    file.seek(io::SeekFrom::Start(16 + count * 32))?;
    // The most that attributes of one file can be, with room to spare; mostly it is a few bytes.
    let mut bytes = vec![0; 4096];
    let got = file.read(&mut bytes)?;
    bytes.truncate(got);
    let root = |bytes: &[u8]| {
        let mut reader = Reader { rest: bytes, objects: Vec::new(), leaves: Vec::new() };
        if reader.byte()? == b'd' { reader.attr() } else { Err(damaged("its root")) }
    };
    root(&bytes).or_else(|_| {
        file.take(1 << 20).read_to_end(&mut bytes)?;
        root(&bytes)
    })
}

/// The tree in a file's bytes.
///
/// # Errors
/// They are damaged.
pub(crate) fn read(bytes: &[u8]) -> io::Result<Arc<Dir>> {
    let (body, checksum) = bytes.split_last_chunk::<8>().ok_or_else(|| damaged("it ends early"))?;
    if xxh3_64(body) != u64::from_le_bytes(*checksum) {
        return Err(damaged("its checksum is wrong"));
    }
    let mut rest = body;
    let objects = objects_in(&mut rest)?;
    let mut reader = Reader { rest, objects, leaves: Vec::new() };
    match reader.entry(0)? {
        Entry::Dir(root) if reader.rest.is_empty() => Ok(root),
        _ => Err(damaged("its root")),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    objects: Vec<Digest>,
    leaves: Vec<Arc<Leaf>>,
}

impl Reader<'_> {
    fn entry(&mut self, depth: usize) -> io::Result<Entry> {
        if depth > DEEPEST {
            return Err(damaged("it is too deep"));
        }
        let kind = self.byte()?;
        match kind {
            b'w' => return Ok(Entry::Whiteout),
            b'h' => {
                let number = self.number()?;
                let leaf = usize::try_from(number).ok().and_then(|number| self.leaves.get(number));
                return leaf.cloned().map(Entry::Leaf).ok_or_else(|| damaged("a link to nothing"));
            }
            _ => {}
        }
        let attr = self.attr()?;
        let what = match kind {
            b'd' => {
                let opaque = self.byte()? == 1;
                let mut dir = Dir { attr, opaque, ..Dir::default() };
                for _ in 0..self.number()? {
                    let name = self.text()?.into();
                    let entry = self.entry(depth + 1)?;
                    dir.entries.insert(name, entry);
                }
                return Ok(Entry::Dir(Arc::new(dir)));
            }
            b'i' => {
                let bytes: Box<[u8]> = self.text()?.into();
                What::File { size: bytes.len() as u64, content: Content::Inline(bytes) }
            }
            b'f' => {
                let size = self.number()?;
                let place = usize::try_from(self.number()?).ok();
                let digest = place.and_then(|place| self.objects.get(place)).copied();
                let digest = digest.ok_or_else(|| damaged("an object that it does not list"))?;
                What::File { size, content: Content::Object(digest) }
            }
            b'l' => What::Symlink(self.text()?.into()),
            b'c' => What::Node(Node::Char(self.small()?, self.small()?)),
            b'b' => What::Node(Node::Block(self.small()?, self.small()?)),
            b'p' => What::Node(Node::Fifo),
            b's' => What::Node(Node::Socket),
            _ => return Err(damaged("an entry of an unknown kind")),
        };
        let leaf = Arc::new(Leaf { attr, what });
        self.leaves.push(Arc::clone(&leaf));
        Ok(Entry::Leaf(leaf))
    }

    fn attr(&mut self) -> io::Result<Attr> {
        let (mode, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let zigzag = self.number()?;
        let seconds = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
        let nanoseconds = self.small()?;
        let mut xattrs = Vec::new();
        for _ in 0..self.number()? {
            xattrs.push((self.text()?.to_vec(), self.text()?.to_vec()));
        }
        let xattrs = (!xattrs.is_empty()).then(|| Arc::new(xattrs));
        Ok(Attr { mode, uid, gid, mtime: Time { seconds, nanoseconds }, xattrs })
    }

    fn byte(&mut self) -> io::Result<u8> {
        let (byte, rest) = self.rest.split_first().ok_or_else(|| damaged("it ends early"))?;
        self.rest = rest;
        Ok(*byte)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
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

    fn text(&mut self) -> io::Result<&[u8]> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let (text, rest) = self.rest.split_at_checked(length).ok_or_else(|| damaged("it ends early"))?;
        self.rest = rest;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Hasher;

    fn sample() -> Dir {
        let attr = Attr {
            mode: 0o4755,
            uid: 70_000,
            gid: u32::MAX,
            mtime: Time { seconds: -5, nanoseconds: 999_999_999 },
            xattrs: Some(Arc::new(vec![(b"user.a".to_vec(), vec![0, 1])])),
        };
        let leaf = |what| Entry::Leaf(Arc::new(Leaf { attr: attr.clone(), what }));
        let object = |text: &[u8]| What::File { size: u64::MAX, content: Content::Object(Hasher::of(text)) };
        let shared = leaf(object(b"shared"));
        let entries = [
            ("shared", shared.clone()),
            ("again", shared),
            ("other", leaf(object(b"other"))),
            ("small", leaf(What::File { size: 3, content: Content::Inline(b"abc"[..].into()) })),
            ("link", leaf(What::Symlink(b"../x"[..].into()))),
            ("char", leaf(What::Node(Node::Char(4095, 1 << 19)))),
            ("block", leaf(What::Node(Node::Block(8, 1)))),
            ("fifo", leaf(What::Node(Node::Fifo))),
            ("socket", leaf(What::Node(Node::Socket))),
            ("gone", Entry::Whiteout),
            ("dir", Entry::Dir(Arc::new(Dir { opaque: true, ..Dir::implied() }))),
        ];
        let entries = entries.into_iter().map(|(name, entry)| (name.as_bytes().into(), entry)).collect();
        Dir { attr, opaque: false, entries }
    }

    #[test]
    fn plain_what_is_written_is_read() {
        let tree = sample();
        let bytes = write(&tree, &tree.objects());
        let back = read(&bytes).unwrap();
        assert_eq!(*back, tree);
        assert_eq!(objects_in(&mut &bytes[..]).unwrap(), tree.objects());
        let other = Hasher::of(b"replaced");
        let mut list = [tree.objects(), vec![other]].concat();
        list.sort_unstable();
        let with_other = write(&tree, &list);
        assert_eq!(*read(&with_other).unwrap(), tree);
        assert_eq!(objects_in(&mut &with_other[..]).unwrap(), list);
        let (Some(Entry::Leaf(a)), Some(Entry::Leaf(b))) =
            (back.entries.get(&b"shared"[..]), back.entries.get(&b"again"[..]))
        else {
            panic!("{back:?}")
        };
        assert!(Arc::ptr_eq(a, b), "one file of two names");
    }

    #[test]
    fn plain_damage_is_found() {
        let bytes = write(&sample(), &sample().objects());
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(read(&flipped).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn plain_a_sound_checksum_over_nonsense_is_no_harm() {
        let bytes = write(&sample(), &sample().objects());
        for at in 0..bytes.len() - 8 {
            for value in [0, 1, 0x7f, 0x80, 0xff, b'd', b'h'] {
                let mut forged = bytes[..bytes.len() - 8].to_vec();
                forged[at] = value;
                let checksum = xxh3_64(&forged);
                forged.extend_from_slice(&checksum.to_le_bytes());
                let _ = read(&forged);
            }
        }
    }
}
