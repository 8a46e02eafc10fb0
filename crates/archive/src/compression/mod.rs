//! Compression: detected by content when reading, deterministic when writing.
//!
//! Names and media types lie often enough that only the first bytes count ([`detect`]). The encoders give the
//! same bytes for the same input wherever they run: no time, no name, and blocks that do not depend on the number of
//! threads.

mod decode;
mod gzip;

pub use decode::{Decoder, ZSTD_WINDOW_LOG_MAX};

use gzip::ParallelGzip;
use std::io::{self, Write};

/// A form of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None.
    None,
    /// Gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// The suffix of OCI's media types of layers: `application/vnd.oci.image.layer.v1.tar` and this.
    pub fn media_type_suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }
}

/// What the first bytes (six or more, or all there are) say.
pub fn detect(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Compresses what is written to it. [`Encoder::finish`] must be called: dropping it leaves the output incomplete.
#[derive(Debug)]
pub struct Encoder<W: Write>(Kind<W>);

#[derive(Debug)]
enum Kind<W: Write> {
    Plain(W),
    Gzip(Box<ParallelGzip<W>>),
    Zstd(Zstd<W>),
}

struct Zstd<W: Write>(zstd::Encoder<'static, W>);

impl<W: Write> std::fmt::Debug for Zstd<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("zstd")
    }
}

/// How many threads are worth having: one for each processor, at most eight.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8)
}

impl<W: Write> Encoder<W> {
    /// At the compression's usual level (6 for gzip, 3 for zstd).
    ///
    /// # Errors
    /// Out of memory or threads; `out` fails.
    pub fn new(compression: Compression, out: W) -> io::Result<Self> {
        Self::with_threads(compression, out, threads())
    }

    /// With a given number of threads, which changes the speed and never the output.
    ///
    /// # Errors
    /// Out of memory or threads; `out` fails.
    pub fn with_threads(compression: Compression, out: W, threads: usize) -> io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Kind::Plain(out),
            Compression::Gzip => Kind::Gzip(Box::new(ParallelGzip::new(out, threads)?)),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, 3)?;
                encoder.include_checksum(true)?;
                Kind::Zstd(Zstd(encoder))
            }
        }))
    }

    /// Writes what is left and gives the output back, not flushed.
    ///
    /// # Errors
    /// The output's.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Kind::Plain(out) => Ok(out),
            Kind::Gzip(encoder) => encoder.finish(),
            Kind::Zstd(encoder) => encoder.0.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(out) => out.write(data),
            Kind::Gzip(encoder) => encoder.write(data),
            Kind::Zstd(encoder) => encoder.0.write(data),
        }
    }

    /// Does nothing for gzip: where blocks end must not depend on flushes.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Plain(out) => out.flush(),
            Kind::Gzip(_) | Kind::Zstd(_) => Ok(()),
        }
    }
}
