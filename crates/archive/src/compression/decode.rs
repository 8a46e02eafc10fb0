//! Decompression of whatever it is.

use super::{Compression, detect};
use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, BufReader, Read};

const BUFFER: usize = 256 << 10;

/// The largest zstd window that is accepted, as a power of two: 8 MiB, which the format recommends every decoder
/// to support (RFC 8878, 3.1.1.1.2) and which keeps parallel loads in their memory.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The bytes that were looked at, and the rest.
type Input<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// Gives the plain bytes of a gzip, zstd or plain stream, told apart by content.
///
/// Gzip may have several members and zeros after the last (tapes and block devices leave them); zstd several frames,
/// skippable ones too. A stream that ends early or goes on with something else is an error.
#[derive(Debug)]
pub struct Decoder<R: Read>(Kind<R>, Compression);

#[derive(Debug)]
enum Kind<R: Read> {
    Plain(Input<R>),
    Gzip(Option<Box<GzDecoder<Input<R>>>>),
    Zeros(Input<R>),
    Zstd(Zstd<R>),
}

struct Zstd<R: Read>(zstd::Decoder<'static, Input<R>>);

impl<R: Read> std::fmt::Debug for Zstd<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("zstd")
    }
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `input`.
    ///
    /// # Errors
    /// The input's; it is compressed in a way that is not supported.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(6);
        (&mut input).take(6).read_to_end(&mut start)?;
        let compression = detect(&start);
        for (magic, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (&b"BZh91A"[..], "bzip2")] {
            if start.starts_with(magic) {
                let reason = format!("compressed with {name}; gzip, zstd and plain are supported");
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
        }
        let input = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(input));
        let kind = match compression {
            Compression::None => Kind::Plain(input),
            Compression::Gzip => Kind::Gzip(Some(Box::new(GzDecoder::new(input)))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Kind::Zstd(Zstd(decoder))
            }
        };
        Ok(Self(kind, compression))
    }

    /// What was found.
    pub fn compression(&self) -> Compression {
        self.1
    }
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Says in words what a decompressor says in codes.
fn explain(name: &str, error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), format!("the {name} stream ends early")),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            let text = error.to_string();
            if text.contains("too much memory") {
                return invalid(format!(
                    "the zstd stream needs a window larger than {} MiB",
                    (1_u64 << ZSTD_WINDOW_LOG_MAX) >> 20
                ));
            }
            invalid(format!("the {name} stream is damaged: {text}"))
        }
        _ => error,
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.0 {
                Kind::Plain(input) => return input.read(buffer),
                Kind::Zstd(decoder) => return decoder.0.read(buffer).map_err(|e| explain("zstd", e)),
                Kind::Gzip(slot) => {
                    let Some(decoder) = slot else { return Err(invalid("the gzip stream is damaged")) };
                    let got = decoder.read(buffer).map_err(|e| explain("gzip", e))?;
                    if got > 0 {
                        return Ok(got);
                    }
                    let Some(decoder) = slot.take() else { return Ok(0) };
                    let mut input = decoder.into_inner();
                    let member = input.fill_buf()?.first() == Some(&0x1f);
                    self.0 = if member {
                        Kind::Gzip(Some(Box::new(GzDecoder::new(input))))
                    } else {
                        Kind::Zeros(input)
                    };
                }
                Kind::Zeros(input) => loop {
                    let rest = input.fill_buf()?;
                    if rest.is_empty() {
                        return Ok(0);
                    }
                    if rest.iter().any(|byte| *byte != 0) {
                        return Err(invalid("there is something else after the gzip stream"));
                    }
                    let length = rest.len();
                    input.consume(length);
                },
            }
        }
    }
}
