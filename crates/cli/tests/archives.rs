//! Images in and out of archives, through the command, on every driver.

mod common;

use common::{Ran, Store, drivers, has, is_root};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;
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
    for driver in drivers("root_every_form_comes_back_the_same") {
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

/// An index for several platforms, as registries and `buildx` write it: manifests of other platforms without their blobs, and an
/// attestation for each.
#[test]
fn root_an_index_gives_the_platform_that_is_wanted() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o layout/ derived:2").ok();
    let read =
        |path: &str| -> Value { serde_json::from_slice(&std::fs::read(store.path(path)).unwrap()).unwrap() };
    let write = |bytes: &[u8]| {
        let digest = vellum_types::Digest::sha256(bytes);
        std::fs::write(store.path(&format!("layout/blobs/sha256/{}", digest.hex())), bytes).unwrap();
        json!({ "digest": digest.to_string(), "size": bytes.len() })
    };
    let mut descriptor = read("layout/index.json")["manifests"][0].clone();
    let manifest =
        read(&format!("layout/blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")));
    // The same layers as an image of another platform: only its configuration differs.
    let mut config =
        read(&format!("layout/blobs/{}", manifest["config"]["digest"].as_str().unwrap().replace(':', "/")));
    config["architecture"] = json!("riscv64");
    let mut foreign = manifest.clone();
    let facts = write(config.to_string().as_bytes());
    (foreign["config"]["digest"], foreign["config"]["size"]) =
        (facts["digest"].clone(), facts["size"].clone());
    let facts = write(foreign.to_string().as_bytes());
    let platform = |os: &str, architecture: &str| json!({ "os": os, "architecture": architecture });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let host = store.json("image inspect --json derived:2")[0]["platform"].as_str().unwrap().to_owned();
    let (os, architecture) = host.split_once('/').unwrap();
    let name = descriptor["annotations"].take();
    descriptor["platform"] = platform(os, architecture);
    let absent = format!("sha256:{}", "0".repeat(64));
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        { "mediaType": kind, "digest": facts["digest"], "size": facts["size"], "platform": platform("linux", "riscv64") },
        { "mediaType": kind, "digest": absent, "size": 1, "platform": platform("windows", architecture) },
        descriptor,
        { "mediaType": kind, "digest": absent, "size": 1, "platform": platform("unknown", "unknown"),
          "annotations": { "vnd.docker.reference.type": "attestation-manifest" } },
    ]});
    let mut top = write(index.to_string().as_bytes());
    top["mediaType"] = index["mediaType"].clone();
    top["annotations"] = name;
    std::fs::write(
        store.path("layout/index.json"),
        json!({ "schemaVersion": 2, "manifests": [top] }).to_string(),
    )
    .unwrap();
    store.shell("tar cf index.tar -C layout .").ok();
    for input in ["layout", "index.tar"] {
        let other = Store::new("overlay");
        let load = |more: &str| other.words(&format!("load -i {} {more}", store.path(input).display()));
        assert_eq!(load("").ok(), "Loaded image: derived:2", "{input}");
        assert_eq!(other.json("image inspect --json derived:2")[0]["platform"], host);
        assert_eq!(
            load("--platform linux/riscv64 -t keep:x").ok(),
            "Loaded image: derived:2\nLoaded image: keep:x"
        );
        // The name goes over, as with a pull; the layers are shared, and so is nothing else.
        assert_eq!(other.json("image inspect --json keep:x")[0]["platform"], "linux/riscv64");
        assert_eq!(other.words("images -q").ok().lines().count(), 2);
        let err = load("--platform linux/s390x").fails(3);
        assert!(err.contains("linux/riscv64") && !err.contains("unknown"), "{err}");
    }
}

/// A load that is killed is loaded again: what was finished is not unpacked again, and the command says so.
#[test]
fn root_a_killed_load_goes_on_where_it_was() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    // Three small layers, and one of so many files that the others are recorded long before it is unpacked.
    let line = "mkdir one && echo 0 >one/f && $V import one x:0 >/dev/null && for n in 1 2 3; do \
         $V create --name c x:$((n-1)) >/dev/null && r=$($V mount c) && echo $n >$r/f$n && \
         if [ $n = 3 ]; then mkdir $r/many && (cd $r/many && seq 16000 | xargs touch); fi && \
         $V umount c && $V commit c x:$n && $V rm c || exit 1; done; $V save -o image.tar x:3";
    store.shell(line).ok();
    for patience in [100, 1000, 10_000] {
        let other = Store::new("overlay");
        other.words("images").ok();
        let load = || {
            let mut command = other.command();
            command
                .args(["load", "-i"])
                .arg(store.path("image.tar"))
                .stderr(Stdio::piped())
                .stdout(Stdio::piped());
            command.spawn().unwrap()
        };
        let mut child = load();
        // Only a layer that is recorded as ready has the file that a rebuilt catalog would need.
        let ready = || {
            other
                .shell("ls root/layers/overlay/*/layer.json 2>/dev/null | wc -l")
                .ok()
                .parse::<u64>()
                .unwrap()
        };
        while ready() < 3 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // The record follows the files.
        std::thread::sleep(Duration::from_millis(patience));
        child.kill().unwrap();
        let killed = child.wait().unwrap();
        let ran = Ran::of(load().wait_with_output().unwrap());
        if killed.success() {
            skip!("the machine was too quick, or too slow: the load ended before it was killed");
        }
        let said = ran.err.clone();
        assert_eq!(ran.ok(), "Loaded image: x:3");
        assert_eq!(diff_ids(&other, "x:3"), diff_ids(&store, "x:3"));
        assert_eq!(other.words("check").ok(), "The store is sound.");
        if !said.is_empty() {
            let some = (1..4).map(|some| format!("note: {some} of 4 layers were in the store already\n"));
            assert!(some.into_iter().any(|note| note == said), "{said}");
            return;
        }
    }
    panic!("the small layers were never recorded");
}

#[test]
fn root_names_are_as_docker_has_them() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store
        .words("image tag base:1 keep:x quay.io/a/b app docker.io/library/full:1 localhost:5000/c@sha256:bad")
        .fails(2);
    store.words("image tag base:1 keep:x quay.io/a/b app docker.io/library/full:1 localhost:5000/c").ok();
    let listed = store.words("images base").ok();
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let all = store.words("images").ok();
    for (repository, tag) in [
        ("keep", "x"),
        ("quay.io/a/b", "latest"),
        ("app", "latest"),
        ("full", "1"),
        ("localhost:5000/c", "latest"),
    ] {
        let shown = |line: &str| line.split_whitespace().take(2).eq([repository, tag]);
        assert!(all.lines().any(shown), "{repository}:{tag} in\n{all}");
    }
    for reference in [
        "keep:x",
        "library/keep:x",
        "docker.io/keep:x",
        "docker.io/library/keep:x",
        "index.docker.io/library/keep:x",
        "app:latest",
    ] {
        store.run(["image", "inspect", reference]).ok();
    }
    store.words("image inspect keep").fails(3);
    // A name goes, and the image with the last.
    assert_eq!(store.words("rmi docker.io/library/keep:x").ok(), "Untagged: keep:x");
    let config = |id: &str| store.path(&format!("root/config/{}", id.trim_start_matches("sha256:"))).exists();
    let id = store.json("image inspect --json derived:2")[0]["id"].as_str().unwrap().to_owned();
    assert!(config(&id));
    store.words("import tree/etc other:1").ok();
    let other = store.json("image inspect --json other:1")[0]["id"].as_str().unwrap().to_owned();
    assert!(config(&other));
    store.words("rmi other:1").ok();
    assert!(!config(&other), "it goes with the image");
    store.words("create --name c derived:2").ok();
    store.words("rmi -f derived:2").ok();
    assert!(config(&id), "a container needs it");
    store.words("rm c").ok();
    assert!(!config(&id), "nothing needs it");
}
