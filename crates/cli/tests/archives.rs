//! Images in and out of archives, through the command, on both drivers.

mod common;

use common::{DRIVERS, Store, has, is_root};
use std::collections::BTreeSet;
use std::process::Command;
use vellum_testkit::skip;

/// The diff IDs of an image, as its configuration has them.
fn diff_ids(store: &Store, image: &str) -> serde_json::Value {
    store.json(&format!("image inspect --json {image}"))[0]["config"]["rootfs"]["diff_ids"].clone()
}

/// Every form that `save` writes: (file, arguments).
const FORMS: [(&str, &str); 6] = [
    ("oci.tar", ""),
    ("gzip.tar", "--compression gzip"),
    ("zstd.tar", "--compression zstd"),
    ("plain.tar", "--compression none"),
    ("docker.tar", "--format docker"),
    ("layout/", ""),
];

#[test]
fn root_every_form_comes_back_the_same() {
    if !is_root() {
        skip!("needs root");
    }
    for driver in DRIVERS {
        let store = Store::with_images(driver);
        let id = store.json("image inspect --json derived:2")[0]["id"].clone();
        for (file, arguments) in FORMS {
            store.words(&format!("save -o {file} {arguments} derived:2 base:1")).ok();
            let other = Store::new(driver);
            let loaded = other.run(["load".as_ref(), "-i".as_ref(), store.path(file).as_os_str()]).ok();
            assert_eq!(loaded, "Loaded image: derived:2\nLoaded image: base:1", "{file}");
            assert_eq!(other.json("image inspect --json derived:2")[0]["id"], id, "{file}");
            assert_eq!(diff_ids(&other, "base:1"), diff_ids(&store, "base:1"), "{file}");
            other.words("check").ok();
            // What is saved again is the same, byte for byte.
            if file.ends_with(".tar") {
                other.words(&format!("save -o again.tar {arguments} derived:2 base:1")).ok();
                let (first, again) =
                    (std::fs::read(store.path(file)), std::fs::read(other.path("again.tar")));
                assert!(first.unwrap() == again.unwrap(), "{driver} {file}");
            }
        }
    }
}

#[test]
fn root_pipes_are_read_and_written() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    for (file, arguments) in [("oci.tar", ""), ("docker.tar", "--format docker")] {
        store.words(&format!("save -o {file} {arguments} derived:2")).ok();
        store.shell(&format!("$V save {arguments} derived:2 | cmp - {file}")).ok();
        store.shell(&format!("gzip -k {file}; zstd -q {file} || cp {file} {file}.zst")).ok();
        for end in ["", ".gz", ".zst"] {
            let other = Store::new("vfs");
            let line = format!("$V load < {}", store.path(&format!("{file}{end}")).display());
            assert_eq!(other.shell(&line).ok(), "Loaded image: derived:2", "{file}{end}");
            let spooled: Vec<_> = std::fs::read_dir(other.path("root/tmp")).unwrap().collect();
            assert!(spooled.is_empty(), "{spooled:?}");
        }
    }
}

#[test]
fn root_old_docker_archives_are_read() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o docker.tar --format docker derived:2").ok();
    store
        .shell("mkdir old && tar xf docker.tar -C old && rm old/manifest.json && tar cf old.tar -C old .")
        .ok();
    for input in ["old", "old.tar"] {
        let other = Store::new("vfs");
        let loaded = other.run(["load".as_ref(), "-i".as_ref(), store.path(input).as_os_str()]).ok();
        assert_eq!(loaded, "Loaded image: derived:2");
        assert_eq!(diff_ids(&other, "derived:2"), diff_ids(&store, "derived:2"));
    }
}

#[test]
fn root_kept_blobs_keep_the_manifest() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o zstd.tar --compression zstd derived:2").ok();
    let other = Store::new("overlay");
    let archive = store.path("zstd.tar");
    // The second load keeps the blobs of layers that the first has unpacked.
    other.run(["load".as_ref(), "-i".as_ref(), archive.as_os_str()]).ok();
    other.run(["load".as_ref(), "--keep-blobs".as_ref(), "-i".as_ref(), archive.as_os_str()]).ok();
    other.words("check").ok();
    // No compression is asked for: the blobs are given back as they came, and so is the manifest.
    other.words("save -o again.tar derived:2").ok();
    assert!(std::fs::read(archive).unwrap() == std::fs::read(other.path("again.tar")).unwrap());
    other.words("save -o gzip.tar --compression gzip derived:2").ok();
    store.words("save -o gzip.tar derived:2").ok();
    assert!(std::fs::read(store.path("gzip.tar")).unwrap() == std::fs::read(other.path("gzip.tar")).unwrap());
}

#[test]
fn root_names_are_added_and_layouts_grow() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o layout/ base:1").ok();
    store.words("save -o layout/ derived:2").ok();
    store.words("save -o layout/ derived:2").ok();
    let other = Store::new("overlay");
    let layout = store.path("layout");
    let load = |more: &[&str]| {
        other.run(["load", "-i", layout.to_str().unwrap()].iter().chain(more).collect::<Vec<_>>())
    };
    assert!(load(&["-t", "x:1"]).fails(2).contains("2 images"));
    assert_eq!(load(&[]).ok(), "Loaded image: base:1\nLoaded image: derived:2");
    store.words("save -o one.tar base:1").ok();
    let loaded = other.run(["load", "-t", "keep:x", "-i", store.path("one.tar").to_str().unwrap()]).ok();
    assert_eq!(loaded, "Loaded image: base:1\nLoaded image: keep:x");
    let names: BTreeSet<String> = serde_json::from_value(
        other.json("image inspect --json docker.io/library/keep:x")[0]["names"].clone(),
    )
    .unwrap();
    assert!(names.contains("docker.io/library/keep:x") && names.contains("docker.io/library/base:1"));
    assert!(load(&["--platform", "linux/mips"]).fails(3).contains("linux/"));
}

#[test]
fn root_other_tools_read_what_is_saved() {
    if !is_root() {
        skip!("needs root");
    }
    if !has("skopeo") || !has("umoci") {
        skip!("needs skopeo and umoci");
    }
    let store = Store::with_images("overlay");
    for (file, arguments) in FORMS {
        store.words(&format!("save -o {file} {arguments} derived:2")).ok();
    }
    for source in [
        "oci-archive:oci.tar",
        "oci-archive:gzip.tar",
        "oci-archive:zstd.tar",
        "oci-archive:plain.tar",
        "docker-archive:docker.tar:derived:2",
        "oci:layout:2",
    ] {
        let run = |arguments: &[&str]| {
            let out = Command::new("skopeo").args(arguments).current_dir(store.dir.path()).output().unwrap();
            assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        };
        run(&["inspect", source]);
        let _ = std::fs::remove_dir_all(store.path("copied"));
        run(&["copy", "-q", "--insecure-policy", source, "oci:copied:again:1"]);
        let other = Store::new("vfs");
        let loaded = other.run(["load".as_ref(), "-i".as_ref(), store.path("copied").as_os_str()]).ok();
        assert_eq!(loaded, "Loaded image: again:1", "{source}");
        assert_eq!(diff_ids(&other, "again:1"), diff_ids(&store, "derived:2"), "{source}");
    }
    store.shell("umoci unpack --image layout:2 bundle").ok();
    let listed = store.shell("cd bundle/rootfs && find . | sort").ok();
    store.words("create --name c derived:2").ok();
    let mounted = store.words("mount c").ok();
    assert_eq!(store.shell(&format!("cd {mounted} && find . | sort")).ok(), listed);
    store.words("umount c").ok();
}
