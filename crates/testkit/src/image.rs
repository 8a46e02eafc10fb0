//! Images for tests.
//!
//! [`write_layout`] makes an OCI layout of declared trees, [`deep`] and [`wide`] two that are hard on layer stores, and
//! [`debian`] finds the one that `cargo xtask image` builds out of Debian's packages.
//!
//! ```text
//! $XDG_CACHE_HOME/vellum-test/     ~/.cache by default; may be deleted at any time
//!     real-v2/  small-v2/          OCI layouts with the tag `test`; the version is that of the script that builds them
//!     deep-v1/  wide-v1/
//!     systems-v1/                  three root file systems: folders, for the benchmark
//!     kernel-SUITE-v1/             a kernel and its modules, for throwaway machines (cargo xtask vm)
//! ```

use crate::tree::Tree;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use vellum_archive::compression::{Compression, Encoder};
use vellum_archive::digest::HashingWriter;
use vellum_archive::tree::{Form, Visit};
use vellum_archive::{XattrForm, tree as disk, write::TarWriter};
use vellum_types::Digest;

/// The tag of every test image.
pub const TAG: &str = "test";

/// Where built images are kept.
pub fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || {
        std::env::var_os("HOME").map_or_else(std::env::temp_dir, |home| PathBuf::from(home).join(".cache"))
    };
    base.unwrap_or_else(home).join("vellum-test")
}

/// Where the image of this kind (`real`, `small`, `deep`, `wide`) is kept, built or not.
pub fn place(kind: &str) -> PathBuf {
    let version = if matches!(kind, "real" | "small") { 2 } else { 1 };
    cache().join(format!("{kind}-v{version}"))
}

/// The image of Debian's packages to test with: the layout that `VELLUM_TEST_IMAGE` names, else the small one if it is built.
///
/// # Errors
/// It is not built: the reason for [`skip!`](crate::skip!).
pub fn debian() -> Result<PathBuf, String> {
    let place = std::env::var_os("VELLUM_TEST_IMAGE").map_or_else(|| place("small"), PathBuf::from);
    if place.join("index.json").exists() {
        return Ok(place);
    }
    Err("the test image is not built: cargo xtask image small".into())
}

/// Writes an OCI layout with one image of these layers, the base first, gzipped. Its containers run a shell.
///
/// # Errors
/// The file system's.
pub fn write_layout(folder: &Path, layers: impl IntoIterator<Item = Tree>) -> io::Result<()> {
    write_layout_of("/bin/sh", folder, layers)
}

/// As [`write_layout`]; containers run a command of some words.
///
/// # Errors
/// The file system's.
pub fn write_layout_of(
    command: &str,
    folder: &Path,
    layers: impl IntoIterator<Item = Tree>,
) -> io::Result<()> {
    let words: Vec<String> = command.split(' ').map(|word| format!("\"{word}\"")).collect();
    let words = words.join(",");
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut descriptors, mut diffs) = (Vec::new(), Vec::new());
    for tree in layers {
        let source = folder.join("layer");
        tree.make(&source)?;
        let (diff, digest, size) = write_layer(&source, &folder.join("blob"))?;
        fs::rename(folder.join("blob"), blobs.join(digest.hex()))?;
        fs::remove_dir_all(source)?;
        descriptors.push(descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &digest, size));
        diffs.push(format!("\"{diff}\""));
    }
    let put = |text: String| -> io::Result<(Digest, u64)> {
        let digest = Digest::sha256(text.as_bytes());
        fs::write(blobs.join(digest.hex()), &text)?;
        Ok((digest, text.len() as u64))
    };
    let history =
        vec![r#"{"created":"2024-01-01T00:00:00Z","created_by":"vellum-testkit"}"#; diffs.len()].join(",");
    let (config, size) = put(format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":[{words}]}},"rootfs":{{"type":"layers","diff_ids":[{}]}},"history":[{history}]}}"#,
        diffs.join(",")
    ))?;
    let config = descriptor("application/vnd.oci.image.config.v1+json", &config, size);
    let media = "application/vnd.oci.image.manifest.v1+json";
    let (manifest, size) = put(format!(
        r#"{{"schemaVersion":2,"mediaType":"{media}","config":{config},"layers":[{}]}}"#,
        descriptors.join(",")
    ))?;
    let manifest = descriptor(media, &manifest, size);
    let named = manifest.replacen(
        '{',
        &format!(r#"{{"annotations":{{"org.opencontainers.image.ref.name":"{TAG}"}},"#),
        1,
    );
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(folder.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{named}]}}"#))
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

/// Writes the folder as a gzipped layer; the digest of its tar, and the digest and size of the blob.
fn write_layer(source: &Path, blob: &Path) -> io::Result<(Digest, Digest, u64)> {
    let out = HashingWriter::new(BufWriter::new(File::create(blob)?));
    let mut tar = TarWriter::new(HashingWriter::new(Encoder::new(Compression::Gzip, out)?));
    let root = File::open(source)?;
    let form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: false };
    disk::walk(root.as_fd(), form, &mut |path, node| {
        tar.node(path, node).map(|_| Visit::Enter).map_err(io::Error::other)
    })
    .map_err(io::Error::other)?;
    let (diff, _, encoder) = tar.finish()?.finish();
    let (digest, size, file) = encoder.finish()?.finish();
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((diff, digest, size))
}

/// 120 layers of one small file each.
///
/// # Errors
/// The file system's.
pub fn deep(folder: &Path) -> io::Result<()> {
    write_layout(folder, (0..120).map(|n| Tree::new().file(format!("file-{n:03}"), n.to_string(), 0o644)))
}

/// One layer of 100,000 small files in a hundred directories.
///
/// # Errors
/// The file system's.
pub fn wide(folder: &Path) -> io::Result<()> {
    let mut tree = Tree::new();
    for dir in 0..100 {
        tree = tree.dir(format!("d{dir:02}"), 0o755);
        for file in 0..1000 {
            let content = format!("{dir} {file} ").repeat(file);
            tree = tree.file(format!("d{dir:02}/f{file:03}"), content, 0o644);
        }
    }
    write_layout(folder, [tree])
}
