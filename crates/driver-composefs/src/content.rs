//! Contents of files: told in parts, copied and hashed, with their holes.

use crate::digest::{Digest, Hasher};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use vellum_archive::target::FileData;

/// A part of a file's content.
pub(crate) enum Part<'a> {
    /// Bytes, and where they belong.
    Data(&'a [u8], u64),
    /// So many zeros.
    Hole(u64),
}

/// Tells a file's content in parts, from front to back.
pub(crate) fn each_part(
    size: u64,
    data: &mut dyn FileData,
    each: &mut dyn FnMut(Part<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut end = 0;
    while let Some((offset, length)) = data.next_extent()? {
        if offset > end {
            each(Part::Hole(offset - end))?;
        }
        let (mut position, mut left) = (offset, length);
        while left > 0 {
            let chunk = data.fill_buf()?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            each(Part::Data(&chunk[..part], position))?;
            data.consume(part);
            position += part as u64;
            left -= part as u64;
        }
        end = position;
    }
    if end < size { each(Part::Hole(size - end)) } else { Ok(()) }
}

/// Runs of data in a file.
fn each_run(file: &File, size: u64, each: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(size);
        each(data, hole)?;
        at = hole;
    }
    Ok(())
}

/// Copies what is data; holes stay holes.
pub(crate) fn copy_data(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    each_run(from, size, &mut |mut at, end| {
        while at < end {
            let part = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = from.read_at(&mut buffer[..part], at)?;
            if got == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
        Ok(())
    })?;
    to.set_len(size)
}

/// As [`digest_of`], of the first `size` bytes; holes are not read.
pub(crate) fn digest_with_holes(file: &mut File, size: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut told = 0;
    each_run(file, size, &mut |mut at, end| {
        hasher.update_zeros(at - told);
        while at < end {
            let part = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = file.read_at(&mut buffer[..part], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&buffer[..got]);
            at += got as u64;
        }
        told = end;
        Ok(())
    })?;
    hasher.update_zeros(size - told);
    Ok(hasher.finish())
}

/// The digest of what is left to read of a file.
pub(crate) fn digest_of(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
