//! Hashing what passes through.

use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};
use vellum_types::Digest;

/// A reader that computes the SHA-256 digest and the length of what is read through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    length: u64,
}

impl<R: Read> HashingReader<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), length: 0 }
    }

    /// The bytes read so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest and the length of what was read, and the inner reader.
    pub fn finish(self) -> (Digest, u64, R) {
        (Digest::from_sha256(self.hasher.finalize().into()), self.length, self.inner)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        self.length += got as u64;
        Ok(got)
    }
}

/// A writer that computes the SHA-256 digest and the length of what is written through it.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    length: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Around `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), length: 0 }
    }

    /// The bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest and the length of what was written, and the inner writer. Does not flush.
    pub fn finish(self) -> (Digest, u64, W) {
        (Digest::from_sha256(self.hasher.finalize().into()), self.length, self.inner)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let done = self.inner.write(data)?;
        self.hasher.update(&data[..done]);
        self.length += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        let mut writer = HashingWriter::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        let (a, length, _) = reader.finish();
        let (b, _, out) = writer.finish();
        assert_eq!((a, length, &out[..]), (b, 3, &b"abc"[..]));
        assert_eq!(a, Digest::sha256(b"abc"));
    }
}
