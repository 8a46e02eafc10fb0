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
    name = os.path.join(out, "gz", "%03d.tar.gz" % number)
    shutil.copyfile(blob(layer["digest"]), name)
    with gzip.open(name) as source, open(os.path.join(out, "plain", "%03d.tar" % number), "wb") as to:
        shutil.copyfileobj(source, to, 1 << 20)
PY
            touch "$1/done""#,
            &[folder, layout],
        )?;
    }
    Ok(image)
}

/// 120 layers of one small file each.
pub(crate) fn deep(folder: &Path) -> Result<Image, Error> {
    generated(folder, "for number in range(120): layer([(f'file-{number:03}', b'%d' % number)])")
}

/// One layer of 100,000 small files in a hundred folders.
pub(crate) fn wide(folder: &Path) -> Result<Image, Error> {
    generated(
        folder,
        "layer([(f'd{n // 1000:02}/f{n % 1000:03}', (b'%d ' % n) * (n % 1000)) for n in range(100000)])",
    )
}

fn generated(folder: &Path, recipe: &str) -> Result<Image, Error> {
    let layout = folder.join("layout");
    if !layout.join("index.json").exists() {
        let script = folder.join("make.py");
        std::fs::create_dir_all(folder).map_err(Error::at(format!("create {}", folder.display())))?;
        std::fs::write(&script, GENERATOR.replace("RECIPE", recipe)).map_err(Error::at("write a script"))?;
        shell(r#"python3 "$1" "$2""#, &[&script, &layout])?;
    }
    prepare(&folder.join("forms"), &layout)
}

const GENERATOR: &str = r#"
import gzip, hashlib, io, json, os, sys, tarfile
out = sys.argv[1]
os.makedirs(os.path.join(out, "blobs", "sha256"))
def put(data):
    digest = hashlib.sha256(data).hexdigest()
    open(os.path.join(out, "blobs", "sha256", digest), "wb").write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}
layers, diffs = [], []
def layer(files):
    buffer = io.BytesIO()
    seen = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            parent = os.path.dirname(name)
            if parent and parent not in seen:
                seen.add(parent)
                info = tarfile.TarInfo(parent); info.type = tarfile.DIRTYPE; info.mode = 0o755; info.mtime = 1700000000
                tar.addfile(info)
            info = tarfile.TarInfo(name); info.size = len(data); info.mode = 0o644; info.mtime = 1700000000
            tar.addfile(info, io.BytesIO(data))
    plain = buffer.getvalue()
    diffs.append("sha256:" + hashlib.sha256(plain).hexdigest())
    layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **put(gzip.compress(plain, 6, mtime=0))})
RECIPE
config = put(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs},
    "history": [{"created": "2024-01-01T00:00:00Z"} for _ in diffs]}).encode())
manifest = put(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config}, "layers": layers}).encode())
json.dump({"imageLayoutVersion": "1.0.0"}, open(os.path.join(out, "oci-layout"), "w"))
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest,
    "annotations": {"org.opencontainers.image.ref.name": "test"}}]}, open(os.path.join(out, "index.json"), "w"))
"#;
