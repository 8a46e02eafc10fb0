//! What recipes and manifests share: numbers of variable length, and how they are compressed.

use std::io::{self, Read, Write};

/// Seven bits a byte, lowest first.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length and that many bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The inverse of [`put`].
pub(crate) fn get(input: &mut dyn Read) -> io::Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(damaged("a number is too long"))
}

/// The inverse of [`put_bytes`], for at most `most` bytes.
pub(crate) fn get_bytes(input: &mut dyn Read, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(get(input)?).ok().filter(|length| *length <= most);
    let mut bytes = vec![0; length.ok_or_else(|| damaged("a length is beyond its limit"))?];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Fast, small and with a checksum: several of these run beside each other in a load.
pub(crate) fn compressor<W: Write>(out: W) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(out, 1)?;
    encoder.include_checksum(true)?;
    encoder.window_log(17)?;
    Ok(encoder)
}

/// A writer that knows how far it is.
pub(crate) struct Counting<'a> {
    pub(crate) out: &'a mut (dyn Write + Send),
    pub(crate) count: u64,
}

impl Write for Counting<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let done = self.out.write(data)?;
        self.count += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
