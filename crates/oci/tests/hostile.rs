//! Archives that are wrong, each with the error that it must give. Plain: needs nothing.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use vellum_oci::{Archive, Error, Format, Image};
use vellum_types::{Digest, Platform};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI layout in the making.
struct Layout {
    dir: tempfile::TempDir,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A blob, and a descriptor of it.
    fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = Digest::sha256(bytes);
        fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    fn document(&self, document: &Value, media_type: &str) -> Value {
        self.blob(&serde_json::to_vec(document).unwrap(), media_type)
    }

    fn config(&self, architecture: &str) -> Value {
        let diff = Digest::sha256(&[0; 1024]).to_string();
        let rootfs = json!({ "type": "layers", "diff_ids": [diff] });
        self.document(&json!({ "os": "linux", "architecture": architecture, "rootfs": rootfs }), CONFIG)
    }

    fn layer(&self) -> Value {
        self.blob(&[0; 1024], LAYER)
    }

    /// The manifest of a good image of one empty layer.
    fn good(&self) -> Value {
        self.good_for("amd64")
    }

    fn good_for(&self, architecture: &str) -> Value {
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": self.config(architecture), "layers": [self.layer()],
        })
    }

    fn index(&self, entries: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        fs::write(self.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    fn images(&self, platform: Option<&str>) -> Result<Vec<Image>, Error> {
        let platform: Option<Platform> = platform.map(|text| text.parse().unwrap());
        Archive::open(self.path(), self.path())?.images(platform.as_ref())
    }
}

/// What must come of a layout that `make` has made.
fn fails(what: &str, make: impl FnOnce(&Layout), expected: &str) {
    let layout = Layout::new();
    make(&layout);
    let error = match layout.images(None) {
        Ok(images) => panic!("{what}: {} images were read", images.len()),
        Err(error) => error,
    };
    let mut text = error.to_string();
    let mut below = std::error::Error::source(&error);
    while let Some(cause) = below {
        text.push_str(&format!(": {cause}"));
        below = cause.source();
    }
    assert!(text.contains(expected), "{what}: '{text}' does not say '{expected}'");
}

/// As [`fails`], for the good manifest with a change.
fn fails_with(what: &str, change: impl FnOnce(&mut Value), expected: &str) {
    fails(
        what,
        |layout| {
            let mut manifest = layout.good();
            change(&mut manifest);
            let entry = layout.document(&manifest, MANIFEST);
            layout.index(&[entry]);
        },
        expected,
    );
}

#[test]
fn plain_good_layout_is_read() {
    let layout = Layout::new();
    let mut entry = layout.document(&layout.good(), MANIFEST);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "keep:x" });
    layout.index(&[entry.clone(), entry]);
    let images = layout.images(None).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].names.iter().map(|n| n.familiar()).collect::<Vec<_>>(), ["keep:x"]);
    assert_eq!(images[0].layers.len(), 1);
    assert!(images[0].manifest.is_some());
}

#[test]
fn plain_wrong_descriptors_are_named() {
    fails_with(
        "digest without algorithm",
        |m| m["layers"][0]["digest"] = json!("abc"),
        "layer 0 of manifest",
    );
    fails_with(
        "path as a digest",
        |m| m["layers"][0]["digest"] = json!("sha256:../../../x"),
        "not a valid digest",
    );
    fails_with(
        "no digest",
        |m| drop(m["layers"][0].as_object_mut().unwrap().remove("digest")),
        "has no digest",
    );
    fails_with("no size", |m| drop(m["layers"][0].as_object_mut().unwrap().remove("size")), "has no size");
    fails_with("negative size", |m| m["layers"][0]["size"] = json!(-1), "-1 is not a size");
    fails_with(
        "wrong size of a layer",
        |m| m["layers"][0]["size"] = json!(1023),
        "1024 bytes where its descriptor says 1023",
    );
    fails_with(
        "wrong size of the configuration",
        |m| m["config"]["size"] = json!(3),
        "where its descriptor says 3",
    );
    fails_with("huge configuration", |m| m["config"]["size"] = json!(1u64 << 40), "exceeds a limit");
    fails_with("fractional size", |m| m["config"]["size"] = json!(1.5), "1.5 is not a size");
    fails_with(
        "media type of a layer",
        |m| m["layers"][0]["mediaType"] = json!("text/html"),
        "its media type is 'text/html'",
    );
    fails_with(
        "media type of the configuration",
        |m| m["config"]["mediaType"] = json!("application/x"),
        "it is no image",
    );
    fails_with(
        "two layers for one diff ID",
        |m| {
            let layer = m["layers"][0].clone();
            m["layers"].as_array_mut().unwrap().push(layer);
        },
        "it has 2 layers, and its configuration 1",
    );
    fails_with(
        "missing layer",
        |m| m["layers"][0]["digest"] = json!(Digest::sha256(b"?").to_string()),
        "is not in the archive",
    );
    fails_with("schema version", |m| m["schemaVersion"] = json!(1), "schemaVersion is not 2");
    fails_with("schema 1", |m| m["fsLayers"] = json!([]), "schema 1");
    fails_with("other media type inside", |m| m["mediaType"] = json!(INDEX), "where its descriptor says");
    fails_with(
        "manifest and index at once",
        |m| m["manifests"] = json!([]),
        "a manifest that lists manifests",
    );
    fails_with(
        "thousands of layers",
        |m| m["layers"] = json!(vec![m["layers"][0].clone(); 10_001]),
        "a list of at most 10000 entries",
    );
    fails_with("layers that are no list", |m| m["layers"] = json!("x"), "is not valid JSON of its kind");
    fails_with(
        "no configuration",
        |m| drop(m.as_object_mut().unwrap().remove("config")),
        "names no configuration",
    );
}

#[test]
fn plain_changed_blobs_are_found() {
    fails(
        "a manifest of other bytes",
        |layout| {
            let entry = layout.document(&layout.good(), MANIFEST);
            let hex = entry["digest"].as_str().unwrap()[7..].to_owned();
            let path = layout.path().join("blobs/sha256").join(hex);
            let text = fs::read_to_string(&path).unwrap().replace("amd64", "amd46").replacen("tar", "rat", 1);
            fs::write(path, text).unwrap();
            layout.index(&[entry]);
        },
        "its bytes have the digest",
    );
    fails(
        "index.json is no JSON",
        |layout| fs::write(layout.path().join("index.json"), "{").unwrap(),
        "index.json",
    );
    fails(
        "deeply nested JSON",
        |layout| {
            fs::write(layout.path().join("index.json"), format!("{{\"manifests\":{}", "[".repeat(100_000)))
                .unwrap()
        },
        "is not valid JSON",
    );
    fails(
        "index.json is a folder",
        |layout| fs::create_dir(layout.path().join("index.json")).unwrap(),
        "neither",
    );
    fails("nothing in the index", |layout| layout.index(&[]), "names no image");
    fails(
        "a blob that is a link out of the archive",
        |layout| {
            let entry = layout.document(&layout.good(), MANIFEST);
            let hex = layout.layer()["digest"].as_str().unwrap()[7..].to_owned();
            let path = layout.path().join("blobs/sha256").join(hex);
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
            layout.index(&[entry]);
        },
        "is not in the archive",
    );
    fails(
        "another version",
        |layout| {
            layout.index(&[]);
            fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0"}"#).unwrap();
        },
        "version 2.0",
    );
}

#[test]
fn plain_documents_that_can_be_read_in_two_ways_or_are_huge_are_refused() {
    let with_text = |what: &str, change: &dyn Fn(String) -> String, expected: &str| {
        fails(
            what,
            |layout| {
                let manifest = change(layout.good().to_string());
                let entry = layout.blob(manifest.as_bytes(), MANIFEST);
                layout.index(&[entry]);
            },
            expected,
        );
    };
    with_text("layers twice", &|text| text.replacen('{', r#"{"layers":[],"#, 1), "duplicate field `layers`");
    with_text(
        "a digest twice",
        &|text| text.replacen(r#""digest":"#, r#""digest":"sha256:0","digest":"#, 1),
        "duplicate field `digest`",
    );
    with_text("a manifest of 5 MiB", &|text| text + &" ".repeat(5 << 20), "exceeds a limit");
    with_text("something after it", &|text| text + "{}", "trailing characters");
    fails(
        "diff IDs twice",
        |layout| {
            let config =
                r#"{"rootfs":{"type":"layers","diff_ids":[]},"rootfs":{"type":"layers","diff_ids":["x"]}}"#;
            let mut manifest = layout.good();
            manifest["config"] = layout.blob(config.as_bytes(), CONFIG);
            let entry = layout.document(&manifest, MANIFEST);
            layout.index(&[entry]);
        },
        "duplicate field `rootfs`",
    );
    fails(
        "a million empty entries",
        |layout| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}{{}}]}}"#, "{},".repeat(1 << 20));
            fs::write(layout.path().join("index.json"), text).unwrap();
        },
        "a list of at most 10000 entries",
    );
}

#[test]
fn plain_a_configurations_count_must_be_the_manifests() {
    for ids in [0, 2, 10_001] {
        let expected =
            if ids > 10_000 { "a list of at most 10000" } else { "it has 1 layers, and its configuration" };
        fails_with_config(&format!("{ids} diff IDs"), &vec![Digest::sha256(b"").to_string(); ids], expected);
    }
    fails_with_config("a diff ID of another kind", &["md5:0".into()], "rootfs.diff_ids[0]");
}

/// As [`fails_with`], for a good manifest whose configuration has these diff IDs.
fn fails_with_config(what: &str, diff_ids: &[String], expected: &str) {
    fails(
        what,
        |layout| {
            let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
            let mut manifest = layout.good();
            manifest["config"] =
                layout.document(&json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs }), CONFIG);
            let entry = layout.document(&manifest, MANIFEST);
            layout.index(&[entry]);
        },
        expected,
    );
}

#[test]
fn plain_indexes_in_cycles_and_depths_end() {
    fails(
        "an index that names itself",
        |layout| {
            // Its digest cannot be right; it must not be followed before that is seen.
            let digest = Digest::sha256(b"x").to_string();
            let entry = json!({ "mediaType": INDEX, "digest": digest, "size": 0 });
            let index = json!({ "schemaVersion": 2, "manifests": [entry] });
            let bytes = serde_json::to_vec(&index).unwrap();
            fs::write(layout.path().join("blobs/sha256").join(&digest[7..]), &bytes).unwrap();
            layout.index(&[json!({ "mediaType": INDEX, "digest": digest, "size": bytes.len() })]);
        },
        "its bytes have the digest",
    );
    fails(
        "indexes in indexes",
        |layout| {
            let mut entry = layout.document(&layout.good(), MANIFEST);
            for _ in 0..10 {
                entry = layout.document(&json!({ "schemaVersion": 2, "manifests": [entry] }), INDEX);
            }
            layout.index(&[entry]);
        },
        "indexes more than 8 deep",
    );
    // Each level names the one below many times: followed naively, 100 to the power of 7.
    let layout = Layout::new();
    let mut entry = layout.document(&json!({ "schemaVersion": 2, "manifests": [] }), INDEX);
    for _ in 0..6 {
        entry = layout.document(&json!({ "schemaVersion": 2, "manifests": vec![entry; 100] }), INDEX);
    }
    layout.index(&[entry]);
    assert!(matches!(layout.images(None), Err(Error::NoPlatform { .. })));
}

#[test]
fn plain_platforms_are_chosen() {
    let layout = Layout::new();
    let of = |architecture: &str| {
        let mut entry = layout.document(&layout.good_for(architecture), MANIFEST);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let mut attestation = layout.document(&layout.good_for("none"), MANIFEST);
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    // A platform whose blobs are not in the archive does no harm.
    let mut absent = of("riscv64");
    absent["digest"] = json!(Digest::sha256(b"absent").to_string());
    let inner = [attestation, absent, of("s390x"), of("arm64")];
    let index = layout.document(&json!({ "schemaVersion": 2, "manifests": inner }), INDEX);
    layout.index(&[index]);
    let images = layout.images(Some("linux/arm64")).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].platform.as_ref().unwrap().architecture, "arm64");
    let error = layout.images(Some("linux/mips")).unwrap_err();
    assert!(error.to_string().ends_with("linux/arm64, linux/riscv64, linux/s390x"), "{error}");
}

/// A docker archive in a folder.
fn docker(manifest: &Value, files: &[(&str, &[u8])]) -> Result<Vec<Image>, Error> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("manifest.json"), serde_json::to_vec(manifest).unwrap()).unwrap();
    for (path, bytes) in files {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), bytes).unwrap();
    }
    let archive = Archive::open(dir.path(), dir.path())?;
    assert_eq!(archive.format(), Format::DockerArchive);
    archive.images(None)
}

#[test]
fn plain_docker_archives_are_checked() {
    let diff = Digest::sha256(&[0; 1024]).to_string();
    let config = serde_json::to_vec(&json!({ "rootfs": { "type": "layers", "diff_ids": [diff] } })).unwrap();
    let hex = format!("{}.json", Digest::sha256(&config).hex());
    let files: [(&str, &[u8]); 3] = [(&hex, &config), ("c.json", &config), ("a/layer.tar", &[0; 1024])];
    let item = |config: &str, layer: &str| json!([{ "Config": config, "RepoTags": ["A B", "x:1"], "Layers": [layer] }]);
    let images = docker(&item(&hex, "a/layer.tar"), &files).unwrap();
    assert_eq!(images[0].unusable_names, ["A B"]);
    assert_eq!(images[0].names[0].familiar(), "x:1");
    let wrong_name = format!("{}.json", Digest::sha256(b"other").hex());
    for (manifest, expected) in [
        (item(&hex, "../../etc/passwd"), "leads out of the archive"),
        (item(&hex, "/etc/passwd"), "leads out of the archive"),
        (
            item(&hex, "b/layer.tar"),
            "layer 0 (b/layer.tar) of entry 0 of manifest.json is not in the archive",
        ),
        (item("../c.json", "a/layer.tar"), "leads out of the archive"),
        (item("", "a/layer.tar"), "names no configuration"),
        (json!([]), "names no image"),
        (json!([{ "Config": "c.json", "Layers": [] }]), "it has 0 layers, and its configuration 1"),
        (json!({}), "not valid JSON"),
    ] {
        let error = docker(&manifest, &files).unwrap_err().to_string();
        assert!(error.contains(expected), "'{error}' does not say '{expected}'");
    }
    let other: [(&str, &[u8]); 2] = [(&wrong_name, &config), ("a/layer.tar", &[0; 1024])];
    let error = docker(&item(&wrong_name, "a/layer.tar"), &other).unwrap_err().to_string();
    assert!(error.contains("its bytes have the digest"), "{error}");
}

#[test]
fn plain_legacy_chains_end() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    for (id, parent) in [(&a, &b), (&b, &a)] {
        fs::create_dir(dir.path().join(id)).unwrap();
        fs::write(dir.path().join(id).join("json"), json!({ "id": id, "parent": parent }).to_string())
            .unwrap();
        fs::write(dir.path().join(id).join("layer.tar"), [0; 1024]).unwrap();
    }
    let repositories = |top: &str| {
        fs::write(dir.path().join("repositories"), json!({ "x": { "1": top } }).to_string()).unwrap();
        Archive::open(dir.path(), dir.path()).unwrap().images(None)
    };
    assert!(repositories(&a).unwrap_err().to_string().contains("its own ancestor"));
    assert!(repositories("../../etc").unwrap_err().to_string().contains("64 hexadecimal digits"));
    fs::write(
        dir.path().join(&b).join("json"),
        json!({ "id": b, "created": "2015-01-01T00:00:00Z" }).to_string(),
    )
    .unwrap();
    let images = repositories(&a).unwrap();
    assert_eq!(images[0].layers.len(), 2);
    assert_eq!(images[0].names[0].familiar(), "x:1");
}

#[test]
fn plain_files_that_are_no_archives_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (b"hello", "shorter than any tar"),
        (&[b'x'; 1024], "neither a folder nor a tar"),
        (&[0; 1024], "it is an empty tar"),
        (b"\xfd7zXZ\0\0\0\0", "compressed with xz"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"\x1f\x8b\x08\x00", "cannot"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Archive::open(&path, dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "'{error}' does not say '{expected}'");
        let error = Archive::from_reader(bytes, dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "'{error}' does not say '{expected}'");
    }
    // All names are held in memory: compressed, they would take next to nothing in the archive.
    let mut long = vec![0; 512];
    for (at, text) in [(0, &b"././@LongLink"[..]), (124, b"00000100000"), (156, b"L"), (257, b"ustar\x0000")]
    {
        long[at..at + text.len()].copy_from_slice(text);
    }
    let seal = |block: &mut Vec<u8>| {
        block[148..156].fill(b' ');
        let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    };
    seal(&mut long);
    long.resize(512 + 0o100_000, b'n');
    let mut file = vec![0; 512];
    file[..1].copy_from_slice(b"x");
    file[156] = b'0';
    seal(&mut file);
    let error = Archive::from_reader(&[long, file].concat()[..], dir.path()).unwrap_err().to_string();
    assert!(error.contains("a name of more than 4096 bytes"), "{error}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "spooled files have no names");
}
