//! The index of a tar file: where each entry's bytes lie.
//!
//! Only the outer archive is read with this; layers are unpacked elsewhere. Nothing is extracted: an entry's name is
//! a key to look up, so a name that leads out of the archive is harmless and simply never found.

use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

pub(crate) const BLOCK: u64 = 512;
/// More entries than any image archive has.
const MAX_ENTRIES: usize = 200_000;
/// The largest long name or extended header.
const MAX_EXTENSION: u64 = 1 << 20;
/// The longest name: no document could name a longer one, and all of them are held in memory.
const MAX_NAME: usize = 4096;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Bytes at this offset.
    File { offset: u64, size: u64 },
    /// The entry of this normal path, or out of the archive.
    Link(Option<String>),
}

/// All entries by normal path.
pub(crate) type Index = HashMap<String, Entry>;

/// The path without `.`, empty names and leading slashes; `None` if it climbs out of the root.
pub(crate) fn normal(path: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}

/// Names that extended headers give to the entry that follows them.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

/// Fails if an archive that begins so cannot be a tar with something in it: known from its first block, before the rest is copied anywhere.
pub(crate) fn check_beginning(block: &[u8], archive: &str) -> Result<()> {
    let reason = match <&[u8; BLOCK as usize]>::try_from(block) {
        Err(_) => "it is shorter than any tar",
        Ok(header) if header.iter().all(|byte| *byte == 0) => "it is an empty tar",
        Ok(header) if !checksum_fits(header) => "it is neither a folder nor a tar",
        Ok(_) => return Ok(()),
    };
    Err(Error::NotAnArchive { archive: archive.to_owned(), reason: reason.into() })
}

/// Reads the headers of the tar in `file`, which `archive` names in errors.
pub(crate) fn index(file: &File, archive: &str) -> Result<Index> {
    let length = file.metadata().map_err(Error::io(format!("look at {archive}")))?.len();
    let read = |at: u64, buffer: &mut [u8]| {
        file.read_exact_at(buffer, at).map_err(Error::io(format!("read {archive} at offset {at}")))
    };
    let damaged = |at: u64, reason: &str| Error::damaged(archive, format!("{reason}, at offset {at}"));
    if length < BLOCK {
        check_beginning(&[], archive)?;
    }
    let mut entries = Index::new();
    let mut next = Extension::default();
    let mut at = 0;
    while at + BLOCK <= length {
        let mut header = [0; BLOCK as usize];
        read(at, &mut header)?;
        if at == 0 {
            check_beginning(&header, archive)?;
        }
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        if !checksum_fits(&header) {
            return Err(damaged(at, "a tar header's checksum is wrong"));
        }
        let size = number(&header[124..136]).ok_or_else(|| damaged(at, "a tar header's size is wrong"))?;
        let kind = header[156];
        let size = next.size.filter(|_| !b"xgLK".contains(&kind)).unwrap_or(size);
        let data = at + BLOCK;
        let end = data.checked_add(size).filter(|end| *end <= length);
        let end = end.ok_or_else(|| damaged(at, "an entry is longer than the archive: it ends early"))?;
        match kind {
            b'x' | b'g' | b'L' | b'K' => {
                if size > MAX_EXTENSION {
                    return Err(Error::limit(
                        archive,
                        format!("an extended header of {size} bytes at offset {at}"),
                    ));
                }
                let mut bytes = vec![0; size as usize];
                read(data, &mut bytes)?;
                next.take(kind, &bytes).ok_or_else(|| damaged(at, "an extended header is malformed"))?;
            }
            _ => {
                let extension = std::mem::take(&mut next);
                if kind == b'S' || extension.sparse {
                    return Err(Error::unsupported(archive, "a sparse entry in an image archive"));
                }
                if entries.len() >= MAX_ENTRIES {
                    return Err(Error::limit(archive, format!("more than {MAX_ENTRIES} entries")));
                }
                let longest = [&extension.path, &extension.link].into_iter().flatten().map(String::len).max();
                if longest > Some(MAX_NAME) {
                    return Err(Error::limit(
                        archive,
                        format!("a name of more than {MAX_NAME} bytes at offset {at}"),
                    ));
                }
                if let Some((path, entry)) = entry(&header, kind, extension, data, size) {
                    entries.insert(path, entry);
                }
            }
        }
        at = end.div_ceil(BLOCK) * BLOCK;
    }
    if at < length && length < at + BLOCK {
        return Err(damaged(at, "a tar header is cut off: it ends early"));
    }
    Ok(entries)
}

impl Extension {
    fn take(&mut self, kind: u8, bytes: &[u8]) -> Option<()> {
        let text = || String::from_utf8_lossy(until_nul(bytes)).into_owned();
        match kind {
            b'L' => self.path = Some(text()),
            b'K' => self.link = Some(text()),
            b'x' => {
                let mut rest = bytes;
                while !rest.is_empty() && rest[0] != 0 {
                    let space = rest.iter().take(20).position(|c| *c == b' ')?;
                    let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
                    let record = rest.get(space + 1..length.checked_sub(1)?)?;
                    let record = String::from_utf8_lossy(record);
                    let (key, value) = record.split_once('=')?;
                    match key {
                        "path" => self.path = Some(value.to_owned()),
                        "linkpath" => self.link = Some(value.to_owned()),
                        "size" => self.size = Some(value.parse().ok()?),
                        key if key.starts_with("GNU.sparse.") => self.sparse = true,
                        _ => {}
                    }
                    rest = rest.get(length..)?;
                }
            }
            // A global header says nothing that matters here.
            _ => {}
        }
        Some(())
    }
}

fn entry(header: &[u8], kind: u8, extension: Extension, offset: u64, size: u64) -> Option<(String, Entry)> {
    let text =
        |range: std::ops::Range<usize>| String::from_utf8_lossy(until_nul(&header[range])).into_owned();
    let path = extension.path.unwrap_or_else(|| {
        let name = text(0..100);
        let prefix = if &header[257..263] == b"ustar\0" { text(345..500) } else { String::new() };
        if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
    });
    let path = normal(&path).filter(|path| !path.is_empty())?;
    let link = extension.link.unwrap_or_else(|| text(157..257));
    let entry = match kind {
        b'0' | 0 | b'7' => Entry::File { offset, size },
        b'1' => Entry::Link(normal(&link)),
        b'2' if link.starts_with('/') => Entry::Link(None),
        b'2' => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            Entry::Link(normal(&format!("{folder}/{link}")))
        }
        _ => return None,
    };
    Some((path, entry))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

/// A number field: octal digits, or big-endian binary behind a set top bit.
fn number(field: &[u8]) -> Option<u64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // A negative number has the next bit set, too, and is no size.
        return rest.iter().try_fold(u64::from(first & 0x7f), |number, byte| {
            number.checked_mul(256).map(|shifted| shifted | u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn checksum_fits(header: &[u8; 512]) -> bool {
    let Some(told) = number(&header[148..156]) else { return false };
    let counted =
        header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    // Old archives summed signed bytes.
    let signed: i64 = counted.clone().map(|byte| i64::from(byte as i8)).sum();
    let unsigned: u64 = counted.map(u64::from).sum();
    told == unsigned || i64::try_from(told) == Ok(signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_inside_the_root() {
        assert_eq!(normal("./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(normal("/a").as_deref(), Some("a"));
        assert_eq!(normal("a/../../b"), None);
        assert_eq!(normal("..").as_deref(), None);
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000017\0"), Some(15));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"99\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some(0x2_0000_0001));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
    }

    #[test]
    fn extended_headers_are_bounded() {
        let mut extension = Extension::default();
        extension.take(b'x', b"12 path=a/b\n11 size=77\n").unwrap();
        assert_eq!((extension.path.as_deref(), extension.size), (Some("a/b"), Some(77)));
        for bad in [&b"99 path=a\n"[..], b"path=a\n", b"0 a=b\n", b"1 a=b\n", b"3 a\n"] {
            assert!(Extension::default().take(b'x', bad).is_none(), "{bad:?}");
        }
    }
}
