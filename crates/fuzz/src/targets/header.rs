//! The tar reader.

use crate::choices::Choices;
use crate::tars::{Builder, sealed};
use std::io::{BufReader, Read as _};
use vellum_archive::tar::{EntryKind, Header, Limits, Reader, Tap};
use vellum_archive::target::FileData as _;

/// Small enough that a fuzzer meets them.
const LIMITS: Limits =
    Limits { entries: 1000, header: 4096, xattrs: 2048, extents: 64, total: 1 << 20, sparse: 1 << 30 };

/// Keeps what is not data.
#[derive(Default)]
struct Kept(Vec<u8>);

impl Tap for Kept {
    fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct Read {
    headers: Vec<Header>,
    data: Vec<Vec<u8>>,
    raw: Vec<u8>,
    error: Option<String>,
}

/// Reads the archive with buffers of this size, taking the data of every entry for which `take` says so.
fn read(tar: &[u8], buffer: usize, take: impl Fn(usize) -> bool) -> Read {
    let mut reader = Reader::with_tap(BufReader::with_capacity(buffer, tar), LIMITS, Kept::default());
    let mut out = Read { headers: Vec::new(), data: Vec::new(), raw: Vec::new(), error: None };
    loop {
        match reader.next_entry() {
            Ok(Some(header)) => {
                check(&header, tar);
                let mut data = Vec::new();
                if take(out.headers.len()) {
                    let mut position = 0;
                    let mut go = || -> std::io::Result<()> {
                        while let Some((offset, length)) = reader.next_extent()? {
                            assert!(
                                offset >= position && length > 0 || header.stored == 0,
                                "runs out of order"
                            );
                            position = offset + length;
                            let before = data.len() as u64;
                            (&mut reader).take(length).read_to_end(&mut data)?;
                            assert_eq!(
                                data.len() as u64 - before,
                                length,
                                "a run that ends early without an error"
                            );
                        }
                        Ok(())
                    };
                    if let Err(error) = go() {
                        out.error = Some(error.kind().to_string());
                        out.headers.push(header);
                        break;
                    }
                    assert_eq!(data.len() as u64, header.stored);
                }
                out.headers.push(header);
                out.data.push(data);
            }
            Ok(None) => {
                assert_eq!(reader.position(), tar.len() as u64, "bytes that nobody saw");
                break;
            }
            Err(error) => {
                assert!(error.offset <= tar.len() as u64);
                out.error = Some(error.to_string());
                break;
            }
        }
    }
    out.raw = std::mem::take(&mut reader.tap().0);
    out
}

/// What holds for every entry.
fn check(header: &Header, tar: &[u8]) {
    assert!(header.mode <= 0o7777 && header.mtime.nanoseconds < 1_000_000_000);
    assert!(header.offset < header.data_offset && header.data_offset <= tar.len() as u64);
    assert!(header.xattrs.is_sorted_by(|a, b| a.0 < b.0));
    let bytes: usize = header.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(bytes as u64 <= LIMITS.xattrs);
    if let Some(extents) = &header.extents {
        assert!(extents.len() <= LIMITS.extents && header.size <= LIMITS.sparse);
        let mut end = 0;
        for (offset, length) in extents {
            assert!(*offset >= end && *length > 0);
            end = offset + length;
        }
        assert!(end <= header.size);
        assert_eq!(extents.iter().map(|(_, length)| length).sum::<u64>(), header.stored);
    } else if header.kind == EntryKind::File {
        assert_eq!(header.size, header.stored);
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mode = choices.byte();
    let tar =
        if mode & 1 == 0 { sealed(choices.rest()) } else { Builder::new("/nowhere").all(&mut choices, 64) };
    let whole = read(&tar, 1 << 16, |_| true);
    let cut = read(&tar, 1 + usize::from(mode >> 1) * 7, |_| true);
    assert_eq!(whole, cut, "how the input is cut into reads must not matter");
    // What is passed over goes to the tap, and to the same entries.
    let passed = read(&tar, 512, |number| number % 2 == 0);
    if whole.error.is_none() {
        assert_eq!(passed.headers, whole.headers);
        assert_eq!(passed.error, None);
        assert_eq!(whole.raw.len() + whole.data.concat().len(), tar.len(), "every byte is a header or data");
    }
}
