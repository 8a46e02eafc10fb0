//! Image archives: their documents, and the tar around them.
//!
//! A fuzzer cannot find a digest. The documents are therefore the parts of the input between bytes 0xff, and `%N` in one of them
//! stands for the digest of the N-th, `#N` for its size, `~N` for the digest's digits. Documents may name those after them.

use crate::jail::{Jail, jailed};
use crate::tars::sealed;
use std::io::Read as _;
use vellum_archive::compression::{Compression, Encoder};
use vellum_oci::{Archive, Format, Image};
use vellum_store::LayerSource as _;
use vellum_types::{DiffId, Digest, ImageId};

/// What may be held of one archive's layers.
const MOST: u64 = 1 << 20;

/// A file of an archive, small and in ustar.
fn file(out: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    out.extend_from_slice(&sealed(&block));
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// The documents with all that stands for others put in: the last first, because it names none.
fn filled(data: &[u8]) -> Vec<Vec<u8>> {
    let parts: Vec<&[u8]> = data.split(|byte| *byte == 0xff).take(10).collect();
    let mut out: Vec<Vec<u8>> = vec![Vec::new(); parts.len()];
    for at in (0..parts.len()).rev() {
        let mut document = Vec::with_capacity(parts[at].len() + 256);
        let mut rest = parts[at];
        while let Some((first, tail)) = rest.split_first() {
            let other =
                tail.first().filter(|digit| digit.is_ascii_digit()).map(|digit| usize::from(digit - b'0'));
            let named =
                other.filter(|other| *other > at && b"%#~".contains(first)).and_then(|other| out.get(other));
            let Some(named) = named else {
                document.push(*first);
                rest = tail;
                continue;
            };
            let digest = Digest::sha256(named);
            let text = match first {
                b'%' => digest.to_string(),
                b'#' => named.len().to_string(),
                _ => digest.hex(),
            };
            document.extend_from_slice(text.as_bytes());
            rest = &tail[1..];
        }
        out[at] = document;
    }
    out
}

/// Opens the archive as a pipe, and looks at all that it gives.
fn read(jail: &Jail, tar: &[u8]) {
    let spool = jail.folder("spool");
    if let Ok(archive) = Archive::from_reader(tar, &spool) {
        for platform in [None, Some("linux/amd64"), Some("linux/arm64/v8")] {
            let platform = platform.map(|text| text.parse().expect("a platform"));
            for image in archive.images(platform.as_ref()).into_iter().flatten() {
                look(&image, archive.format(), tar.len() as u64);
            }
        }
    }
    let left = std::fs::read_dir(&spool).expect("the spool's folder").count();
    assert_eq!(left, 0, "spooled files have no names");
}

/// What holds for every image that is given out.
fn look(image: &Image, format: Format, most: u64) {
    // Texts in parts that nobody reads may be no UTF-8; the store refuses such a configuration as a whole.
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(&image.config) else { return };
    let ids = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    assert_eq!(image.layers.len(), ids, "a layer for each diff ID");
    let ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
    assert!(ids.clone().all(|id| id.as_str().is_some_and(|id| id.parse::<DiffId>().is_ok())));
    if format == Format::OciLayout {
        let manifest = image.manifest.as_deref().expect("a layout has manifests");
        let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(manifest) else { return };
        assert_eq!(
            manifest["config"]["digest"],
            ImageId::of(&image.config).to_string(),
            "the configuration it names"
        );
    }
    for layer in &image.layers {
        let mut bytes = Vec::new();
        let read = layer.open().expect("what the index found").take(MOST).read_to_end(&mut bytes);
        assert!(read.is_ok() && bytes.len() as u64 == layer.size().min(MOST));
        assert!(layer.size() <= most, "nothing comes from outside of the archive");
    }
}

/// An OCI layout; the first document is `index.json`, the others are blobs.
pub(crate) fn layout(data: &[u8]) {
    let documents = filled(data);
    let mut tar = Vec::new();
    file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    for (at, document) in documents.iter().enumerate() {
        let name = format!("blobs/sha256/{}", Digest::sha256(document).hex());
        file(&mut tar, if at == 0 { "index.json" } else { &name }, document);
    }
    jailed(|jail| read(jail, &tar));
}

/// A docker archive; the first document is `manifest.json`, or `repositories` when its first byte is an `R`, the second is found
/// as the configuration `HEX.json` and as `HEX/json`, the others as `N.tar` and `HEX/layer.tar`.
pub(crate) fn docker(data: &[u8]) {
    let legacy = data.first() == Some(&b'R');
    let documents = filled(if legacy { &data[1..] } else { data });
    let mut tar = Vec::new();
    for (at, document) in documents.iter().enumerate() {
        let hex = Digest::sha256(document).hex();
        match at {
            0 => file(&mut tar, if legacy { "repositories" } else { "manifest.json" }, document),
            _ => {
                file(&mut tar, &format!("{hex}.json"), document);
                file(&mut tar, &format!("{hex}/json"), document);
                file(&mut tar, &format!("{hex}/layer.tar"), document);
                file(&mut tar, &format!("{at}.tar"), document);
            }
        }
    }
    jailed(|jail| read(jail, &tar));
}

/// A tar, compressed or not, raw but for its checksums.
pub(crate) fn stream(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let tar = sealed(rest);
    let compression = match first % 8 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        2 => return jailed(|jail| read(jail, rest)),
        _ => Compression::None,
    };
    if compression == Compression::None {
        return jailed(|jail| read(jail, &tar));
    }
    let mut encoder = Encoder::with_threads(compression, Vec::new(), 1).expect("an encoder");
    std::io::Write::write_all(&mut encoder, &tar).expect("memory takes everything");
    let packed = encoder.finish().expect("memory takes everything");
    jailed(|jail| {
        let spool = jail.folder("spool");
        let plain = Archive::from_reader(&tar[..], &spool).map_err(|e| e.to_string()).map(|a| a.format());
        let same = Archive::from_reader(&packed[..], &spool).map_err(|e| e.to_string()).map(|a| a.format());
        assert_eq!(plain.is_ok(), same.is_ok(), "{plain:?} {same:?}");
    });
}
