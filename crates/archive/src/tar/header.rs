//! The 512-byte header.

use super::Problem;
use crate::target::Time;

/// The unit of the format.
pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A further name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

/// An entry, all extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: EntryKind,
    /// The name as it is in the archive.
    pub path: Vec<u8>,
    /// The target of a link as it is in the archive.
    pub link: Vec<u8>,
    /// Permission bits with set-ID and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// The file's size, holes included.
    pub size: u64,
    /// Bytes in the archive.
    pub stored: u64,
    /// Runs of data of a sparse file: (offset, length), ascending, none empty.
    pub extents: Option<Vec<(u64, u64)>>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where in the archive the entry's first header is.
    pub offset: u64,
    /// Where in the archive its data is.
    pub data_offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Gnu,
}

/// One block, checked, as fields.
pub(super) struct Raw<'a>(pub(super) &'a [u8; BLOCK]);

/// The bytes before the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|c| *c == 0).unwrap_or(field.len())]
}

/// Octal digits between spaces and NULs; or base-256, two's complement, when the first bit is set.
pub(super) fn number(field: &[u8], what: &'static str) -> Result<i128, Problem> {
    let bad = Problem::Field(what);
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        let mut value = i128::from(first & 0x7f);
        if first & 0x40 != 0 {
            value -= 0x80;
        }
        for byte in rest {
            value =
                value.checked_mul(256).and_then(|v| v.checked_add(i128::from(*byte))).ok_or(bad.clone())?;
        }
        return Ok(value);
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|c| !(b'0'..=b'7').contains(c)).unwrap_or(text.len());
    if !text[end..].iter().all(|c| matches!(c, 0 | b' ')) && !matches!(text.get(end), Some(0)) {
        return Err(bad);
    }
    text[..end].iter().try_fold(0_i128, |value, digit| Ok(value * 8 + i128::from(digit - b'0')))
}

impl Raw<'_> {
    pub(super) fn check(&self) -> Result<(), Problem> {
        let stored = number(&self.0[148..156], "checksum")?;
        let (mut unsigned, mut signed) = (0_i128, 0_i128);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i128::from(byte);
            signed += i128::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed { Ok(()) } else { Err(Problem::Checksum) }
    }

    pub(super) fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        u64::try_from(number(&self.0[124..136], "size")?).map_err(|_| Problem::Field("size"))
    }

    fn id(&self, at: usize, what: &'static str) -> Result<u32, Problem> {
        u32::try_from(number(&self.0[at..at + 8], what)?).map_err(|_| Problem::Field(what))
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        // The tail of a star header is no prefix; star says so at its end.
        if self.format() == Format::Ustar {
            let length = if &self.0[508..512] == b"tar\0" { 131 } else { 155 };
            let prefix = until_nul(&self.0[345..345 + length]);
            if !prefix.is_empty() {
                return [prefix, b"/", name].concat();
            }
        }
        name.to_vec()
    }

    /// The entry without extensions; `kind` and what depends on it is the caller's.
    pub(super) fn header(&self, kind: EntryKind, offset: u64) -> Result<Header, Problem> {
        let devices = matches!(kind, EntryKind::Char | EntryKind::Block) && self.format() != Format::V7;
        let device =
            if devices { (self.id(329, "major number")?, self.id(337, "minor number")?) } else { (0, 0) };
        let mode = number(&self.0[100..108], "mode")?;
        let seconds = number(&self.0[136..148], "time")?;
        Ok(Header {
            kind,
            path: self.path(),
            link: until_nul(&self.0[157..257]).to_vec(),
            mode: u32::try_from(mode & 0o7777).map_err(|_| Problem::Field("mode"))?,
            uid: self.id(108, "owner")?,
            gid: self.id(116, "group")?,
            mtime: Time {
                seconds: i64::try_from(seconds).map_err(|_| Problem::Field("time"))?,
                nanoseconds: 0,
            },
            size: self.size()?,
            stored: 0,
            extents: None,
            device,
            xattrs: Vec::new(),
            offset,
            data_offset: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"000064x\0", None),
            (b"-000001\0", None),
        ] {
            assert_eq!(number(field, "x").ok(), value, "{field:?}");
        }
    }
}
