//! Compressed streams.

use std::io::{Read as _, Write as _};
use vellum_archive::compression::{Compression, Decoder, Encoder};

/// Enough to see that a bomb goes off slowly: what reads a stream has limits of its own.
const MOST: u64 = 4 << 20;

pub(crate) fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let compression = match first % 4 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        _ => return raw(rest),
    };
    // What was compressed comes back, in how many threads and writes whatever.
    let mut encoder =
        Encoder::with_threads(compression, Vec::new(), 1 + usize::from(first >> 6)).expect("an encoder");
    for part in rest.chunks(1 + usize::from(first >> 2 & 15) * 100) {
        encoder.write_all(part).expect("memory takes everything");
    }
    let packed = encoder.finish().expect("memory takes everything");
    let mut out = Vec::new();
    Decoder::new(&packed[..])
        .and_then(|mut decoder| decoder.read_to_end(&mut out))
        .expect("what was just packed");
    assert!(out == rest);
    // Cut anywhere, it is an error: never less than all without a word.
    let cut = packed.len() * usize::from(*first) / 256;
    if cut > 8 {
        let short = Decoder::new(&packed[..cut]).and_then(|mut d| d.read_to_end(&mut Vec::new()));
        assert!(short.is_err(), "a stream cut at {cut} of {}", packed.len());
    }
}

fn raw(data: &[u8]) {
    let read = |size: usize| {
        let mut out = Vec::new();
        let result = Decoder::new(data).and_then(|decoder| {
            let mut decoder = std::io::BufReader::with_capacity(size, decoder).take(MOST);
            decoder.read_to_end(&mut out)
        });
        (out, result.map_err(|error| error.to_string()))
    };
    let (large, small) = (read(1 << 16), read(100));
    // Which error a damaged stream gives may depend on the room that the decoder has.
    assert_eq!(large.1.is_ok(), small.1.is_ok());
    assert!(large.0 == small.0 || large.1.is_err());
}
