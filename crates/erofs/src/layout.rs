//! Where everything lies.

use crate::{Content, Inode, Tree};

pub(crate) const BLOCK: u64 = 4096;
/// A place of an inode.
pub(crate) const SLOT: u64 = 32;
pub(crate) const INODE: u64 = 64;
pub(crate) const FIRST: u64 = 1024 + 128;
/// The header before attributes.
pub(crate) const XATTR_HEADER: u64 = 12;
pub(crate) const DIRENT: u64 = 12;
/// The most that one chunk of a file can have: the format has five bits for it, above the size of a block.
pub(crate) const CHUNK_BITS: u32 = 12 + 31;
/// The most chunks of a file. With more, a few forged sizes would make a huge image.
const MOST_CHUNKS: u64 = 64;

/// Why a tree cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// An attribute that the format has no prefix for.
    #[error("EROFS has no attributes like {0}")]
    Attribute(String),
    /// An attribute's name or value, or all attributes of an inode together, are too long.
    #[error("the attributes of an entry are longer than EROFS allows")]
    Attributes,
    /// A file that is too large.
    #[error("a file of {0} bytes is larger than an image allows")]
    Size(u64),
    /// More than the format can number.
    #[error("the tree is larger than an image can be")]
    Tree,
}

/// The form of an inode's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In blocks of its own, or none.
    Plain = 0,
    /// The end beside the inode.
    Inline = 2,
    /// In chunks.
    Chunks = 4,
}

/// Where an inode and its data lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The inode's number: its offset in slots.
    pub(crate) nid: u64,
    pub(crate) form: Form,
    /// The first of its own blocks, counted from the first of all.
    pub(crate) block: u32,
}

/// Where everything of a tree lies. See the crate's documentation.
#[derive(Debug)]
pub struct Layout {
    pub(crate) places: Vec<Place>,
    /// Blocks that inodes take, from the beginning.
    pub(crate) meta_blocks: u64,
    /// Blocks of data after those.
    pub(crate) data_blocks: u64,
}

impl Layout {
    /// Gives every inode its place.
    ///
    /// # Errors
    /// The tree holds something that the format cannot.
    pub fn of(tree: &dyn Tree) -> Result<Self, LayoutError> {
        let mut this = Self { places: Vec::with_capacity(tree.count()), meta_blocks: 0, data_blocks: 0 };
        let mut at = FIRST;
        for number in 0..tree.count() {
            let inode = tree.inode(number);
            let head = INODE + attributes_size(&inode)?;
            let (blocks, tail, mut form) = match inode.content {
                Content::Dir => {
                    let size = DirSize::of(tree, number);
                    (size.blocks, size.tail, Form::Inline)
                }
                Content::Inline(data) | Content::Symlink(data) => split(data.len() as u64),
                Content::External(size) => (0, 4 * chunks(size)?, Form::Chunks),
                Content::Char(..) | Content::Block(..) | Content::Fifo | Content::Socket => {
                    (0, 0, Form::Plain)
                }
            };
            let mut own = blocks;
            if tail == 0 {
                form = if form == Form::Chunks { form } else { Form::Plain };
            } else if form == Form::Inline {
                if tail > BLOCK - SLOT {
                    // It fits beside no inode for certain.
                    (own, form) = (blocks + 1, Form::Plain);
                } else if (at + head) % BLOCK + tail > BLOCK {
                    at = (at + head).next_multiple_of(BLOCK) - head;
                    at = at.next_multiple_of(SLOT);
                }
            }
            let block = u32::try_from(this.data_blocks).map_err(|_| LayoutError::Tree)?;
            this.places.push(Place { nid: at / SLOT, form, block });
            this.data_blocks += own;
            at = (at + head + if form == Form::Plain { 0 } else { tail }).next_multiple_of(SLOT);
        }
        this.meta_blocks = at.div_ceil(BLOCK);
        if this.meta_blocks + this.data_blocks > u64::from(u32::MAX) {
            return Err(LayoutError::Tree);
        }
        Ok(this)
    }

    /// How long the image is.
    pub fn size(&self) -> u64 {
        (self.meta_blocks + self.data_blocks) * BLOCK
    }
}

/// Whole blocks and the rest of a run of bytes.
fn split(length: u64) -> (u64, u64, Form) {
    (length / BLOCK, length % BLOCK, Form::Inline)
}

/// The number of chunks of a file, each as large as can be.
pub(crate) fn chunks(size: u64) -> Result<u64, LayoutError> {
    let chunks = size.div_ceil(1 << CHUNK_BITS);
    if chunks > MOST_CHUNKS { Err(LayoutError::Size(size)) } else { Ok(chunks) }
}

/// What a directory takes: entries are put into blocks one after the other, and none lies in two.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct DirSize {
    pub(crate) blocks: u64,
    pub(crate) tail: u64,
}

impl DirSize {
    fn of(tree: &dyn Tree, number: usize) -> Self {
        let mut size = Self::default();
        each_entry(tree, number, &mut |name, _| {
            let more = DIRENT + name.len() as u64;
            if size.tail + more > BLOCK {
                size = Self { blocks: size.blocks + 1, tail: 0 };
            }
            size.tail += more;
        });
        size
    }
}

/// The entries of a directory with `.` and `..`, sorted by name.
pub(crate) fn each_entry(tree: &dyn Tree, number: usize, each: &mut dyn FnMut(&[u8], usize)) {
    let own = [(&b"."[..], number), (&b".."[..], tree.parent(number))];
    let mut told = 0;
    tree.entries(number, &mut |name, inode| {
        while told < own.len() && own[told].0 < name {
            each(own[told].0, own[told].1);
            told += 1;
        }
        each(name, inode);
    });
    own[told..].iter().for_each(|(name, inode)| each(name, *inode));
}

/// What attributes are called: the number of the prefix, and the rest of the name.
pub(crate) fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(u8, &[u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
    let (number, rest) =
        PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)))?;
    ((rest.is_empty()) == matches!(number, 2 | 3)).then_some((number, rest))
}

/// Bytes of all attributes of an inode, with their header.
pub(crate) fn attributes_size(inode: &Inode<'_>) -> Result<u64, LayoutError> {
    if inode.xattrs.is_empty() {
        return Ok(0);
    }
    let mut size = XATTR_HEADER;
    for (name, value) in &inode.xattrs {
        let unknown = || LayoutError::Attribute(name.escape_ascii().to_string());
        let (_, rest) = prefix(name).ok_or_else(unknown)?;
        if rest.len() > usize::from(u8::MAX) || value.len() > usize::from(u16::MAX) {
            return Err(LayoutError::Attributes);
        }
        size += (4 + rest.len() as u64 + value.len() as u64).next_multiple_of(4);
    }
    // Counted in words, in sixteen bits.
    if (size - XATTR_HEADER) / 4 + 1 > u64::from(u16::MAX) { Err(LayoutError::Attributes) } else { Ok(size) }
}
