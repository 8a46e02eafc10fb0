//! The images that are measured, made once and kept in the work folder.

use crate::run::{Error, shell, tool};
use std::path::{Path, PathBuf};

/// An image in every form that the lines need.
#[derive(Debug)]
pub(crate) struct Image {
    /// An OCI layout with gzipped layers, tagged `test`.
    pub oci: PathBuf,
    /// The same as one tar.
    pub oci_tar: PathBuf,
    /// A docker archive with plain layers.
    pub docker: PathBuf,
    /// The gzipped layers by number: `00.tar.gz`, `01.tar.gz` …
    pub gzipped: PathBuf,
    /// The plain layers by number: `00.tar`, `01.tar` …
    pub plain: PathBuf,
}

/// Brings an OCI layout into every other form, below `folder`.
pub(crate) fn prepare(folder: &Path, layout: &Path) -> Result<Image, Error> {
    tool("skopeo")?;
    let image = Image {
        oci: layout.to_owned(),
        oci_tar: folder.join("oci.tar"),
        docker: folder.join("docker.tar"),
        gzipped: folder.join("gz"),
        plain: folder.join("plain"),
    };
    if !folder.join("done").exists() {
        shell(
            r#"rm -rf "$1"; mkdir -p "$1/gz" "$1/plain"
            tar -C "$2" -cf "$1/oci.tar" .
            skopeo copy -q "oci:$2:test" "docker-archive:$1/docker.tar:bench:latest"
            python3 - "$2" "$1" <<'PY'
import json, os, shutil, sys, gzip
layout, out = sys.argv[1:]
blob = lambda d: os.path.join(layout, "blobs", *d.split(":"))
index = json.load(open(os.path.join(layout, "index.json")))
manifest = json.load(open(blob(index["manifests"][0]["digest"])))
for number, layer in enumerate(manifest["layers"]):
    gz = os.path.join(out, "gz", "%03d.tar.gz" % number)
    plain = os.path.join(out, "plain", "%03d.tar" % number)
    shutil.copyfile(blob(layer["digest"]), gz)
    with gzip.open(gz) as source, open(plain, "wb") as to:
        shutil.copyfileobj(source, to, 1 << 20)
    # Some writers end an archive without padding, which tar(1) does not take.
    with open(plain, "r+b") as tar:
        size = tar.seek(0, 2)
        tar.seek(max(0, size - 1024))
        if size % 512 or tar.read().strip(b"\0"):
            tar.seek(0, 2)
            tar.write(bytes(-size % 512 + 1024))
            tar.seek(0)
            with gzip.open(gz, "wb", 6) as to:
                shutil.copyfileobj(tar, to, 1 << 20)
PY
            touch "$1/done""#,
            &[folder, layout],
        )?;
    }
    Ok(image)
}
