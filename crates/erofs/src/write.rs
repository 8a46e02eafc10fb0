//! Writing the image, from front to back.

use crate::layout::{
    BLOCK, CHUNK_BITS, DIRENT, FIRST, Form, INODE, SLOT, XATTR_HEADER, attributes_size, chunks, each_entry,
    prefix,
};
use crate::{Content, Inode, Layout, Tree};
use std::io::{self, Write};

const COMPOSEFS_MAGIC: u32 = 0xd078_629a;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible features: inodes have times of their last change of the content.
const MTIME: u32 = 0x2;
/// Incompatible features: files in chunks.
const CHUNKED_FILE: u32 = 0x4;
/// A block that is not there.
const HOLE: u32 = u32::MAX;

impl Layout {
    /// Writes the image of the tree that this is the layout of.
    ///
    /// # Errors
    /// Writing.
    pub fn write(&self, tree: &dyn Tree, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Out { out, at: 0 };
        self.superblock(tree, &mut out)?;
        let mut record = Vec::new();
        for number in 0..tree.count() {
            out.fill(self.places[number].nid * SLOT)?;
            record.clear();
            self.inode(tree, number, &mut record);
            out.write(&record)?;
        }
        out.fill(self.meta_blocks * BLOCK)?;
        for number in 0..tree.count() {
            let inode = tree.inode(number);
            let inline = self.places[number].form == Form::Inline;
            let keep = |length: usize| if inline { length - length % BLOCK as usize } else { length };
            match inode.content {
                Content::Dir => {
                    let bytes = self.directory(tree, number);
                    out.write(&bytes[..keep(bytes.len())])?;
                }
                Content::Inline(data) | Content::Symlink(data) => out.write(&data[..keep(data.len())])?,
                _ => {}
            }
            out.fill(out.at.next_multiple_of(BLOCK))?;
        }
        Ok(())
    }

    fn superblock(&self, tree: &dyn Tree, out: &mut Out<'_>) -> io::Result<()> {
        let mut header = [0; FIRST as usize];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &COMPOSEFS_MAGIC.to_le_bytes());
        put(4, &1_u32.to_le_bytes());
        let mut sb = |at: usize, bytes: &[u8]| put(1024 + at, bytes);
        sb(0, &MAGIC.to_le_bytes());
        sb(8, &MTIME.to_le_bytes());
        sb(12, &[BLOCK.trailing_zeros() as u8]);
        sb(14, &((FIRST / SLOT) as u16).to_le_bytes());
        sb(16, &(tree.count() as u64).to_le_bytes());
        sb(36, &((self.meta_blocks + self.data_blocks) as u32).to_le_bytes());
        sb(80, &CHUNKED_FILE.to_le_bytes());
        out.write(&header)
    }

    fn inode(&self, tree: &dyn Tree, number: usize, record: &mut Vec<u8>) {
        let inode = tree.inode(number);
        let place = self.places[number];
        let directory = matches!(inode.content, Content::Dir).then(|| self.directory(tree, number));
        let (kind, size) = match inode.content {
            Content::Dir => (0o040_000, directory.as_ref().map_or(0, Vec::len) as u64),
            Content::External(size) => (0o100_000, size),
            Content::Inline(data) => (0o100_000, data.len() as u64),
            Content::Symlink(text) => (0o120_000, text.len() as u64),
            Content::Char(..) => (0o020_000, 0),
            Content::Block(..) => (0o060_000, 0),
            Content::Fifo => (0o010_000, 0),
            Content::Socket => (0o140_000, 0),
        };
        let word = match inode.content {
            Content::Char(major, minor) | Content::Block(major, minor) => {
                (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
            }
            Content::External(_) => CHUNK_BITS - BLOCK.trailing_zeros(),
            Content::Dir | Content::Inline(_) | Content::Symlink(_) => self.meta_blocks as u32 + place.block,
            Content::Fifo | Content::Socket => 0,
        };
        let attributes = attributes_size(&inode).unwrap_or(0);
        // One word counts for the header's last, the others one each.
        let words = if attributes == 0 { 0 } else { (attributes - XATTR_HEADER) / 4 + 1 };
        let begin = record.len();
        record.extend_from_slice(&(1 | (place.form as u16) << 1).to_le_bytes());
        record.extend_from_slice(&(words as u16).to_le_bytes());
        record.extend_from_slice(&((kind | (inode.mode & 0o7777)) as u16).to_le_bytes());
        record.extend_from_slice(&[0; 2]);
        record.extend_from_slice(&size.to_le_bytes());
        record.extend_from_slice(&word.to_le_bytes());
        record.extend_from_slice(&(number as u32 + 1).to_le_bytes());
        record.extend_from_slice(&inode.uid.to_le_bytes());
        record.extend_from_slice(&inode.gid.to_le_bytes());
        record.extend_from_slice(&inode.seconds.to_le_bytes());
        record.extend_from_slice(&inode.nanoseconds.to_le_bytes());
        record.extend_from_slice(&inode.links.to_le_bytes());
        record.resize(begin + INODE as usize, 0);
        put_attributes(&inode, record);
        match inode.content {
            Content::External(size) => {
                for _ in 0..chunks(size).unwrap_or(0) {
                    record.extend_from_slice(&HOLE.to_le_bytes());
                }
            }
            Content::Inline(data) | Content::Symlink(data) if place.form == Form::Inline => {
                record.extend_from_slice(&data[data.len() - data.len() % BLOCK as usize..]);
            }
            Content::Dir if place.form == Form::Inline => {
                let bytes = directory.unwrap_or_default();
                record.extend_from_slice(&bytes[bytes.len() - bytes.len() % BLOCK as usize..]);
            }
            _ => {}
        }
    }

    /// A directory's bytes: whole blocks, and the rest.
    fn directory(&self, tree: &dyn Tree, number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut block: Vec<(Vec<u8>, usize)> = Vec::new();
        let mut used = 0;
        each_entry(tree, number, &mut |name, inode| {
            let more = DIRENT + name.len() as u64;
            if used + more > BLOCK {
                self.dirents(tree, &block, &mut bytes);
                bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
                block.clear();
                used = 0;
            }
            used += more;
            block.push((name.to_vec(), inode));
        });
        self.dirents(tree, &block, &mut bytes);
        bytes
    }

    fn dirents(&self, tree: &dyn Tree, block: &[(Vec<u8>, usize)], bytes: &mut Vec<u8>) {
        let mut name_at = block.len() * DIRENT as usize;
        for (name, inode) in block {
            bytes.extend_from_slice(&self.places[*inode].nid.to_le_bytes());
            bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
            bytes.extend_from_slice(&[entry_type(&tree.inode(*inode)), 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
    }
}

fn put_attributes(inode: &Inode<'_>, record: &mut Vec<u8>) {
    if inode.xattrs.is_empty() {
        return;
    }
    record.extend_from_slice(&[0; XATTR_HEADER as usize]);
    for (name, value) in &inode.xattrs {
        let (number, rest) = prefix(name).unwrap_or((1, name));
        record.extend_from_slice(&[rest.len() as u8, number]);
        record.extend_from_slice(&(value.len() as u16).to_le_bytes());
        record.extend_from_slice(rest);
        record.extend_from_slice(value);
        record.resize(record.len().next_multiple_of(4), 0);
    }
}

fn entry_type(inode: &Inode<'_>) -> u8 {
    match inode.content {
        Content::External(_) | Content::Inline(_) => 1,
        Content::Dir => 2,
        Content::Char(..) => 3,
        Content::Block(..) => 4,
        Content::Fifo => 5,
        Content::Socket => 6,
        Content::Symlink(_) => 7,
    }
}

/// A writer that knows where it is.
struct Out<'a> {
    out: &'a mut dyn Write,
    at: u64,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Zeros up to an offset.
    fn fill(&mut self, to: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < to {
            let part = (to - self.at).min(ZEROS.len() as u64);
            self.write(&ZEROS[..part as usize])?;
        }
        Ok(())
    }
}
