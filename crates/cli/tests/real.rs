//! A real image, through the command: in from every format, compared with what another tool unpacks, out again in
//! every format, and read by other tools.
//!
//! The image is made of Debian's packages by `cargo xtask image small` (or `real`, with `VELLUM_TEST_IMAGE`); without it, or
//! without root, the tests skip. `VELLUM_BIN` tests another build of the command.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::tree::{Compare, Snapshot};
use vellum_testkit::{image, skip};

/// A store of its own, and a folder beside it.
struct Place {
    scratch: Scratch,
    layout: PathBuf,
}

/// What the tests need, or why they cannot run.
fn place() -> Result<Place, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root".into());
    }
    for tool in ["umoci", "skopeo"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return Err(format!("{tool} is not installed"));
        }
    }
    let layout = image::debian()?;
    let scratch = Scratch::new(Kind::Here).map_err(|error| error.to_string())?;
    Ok(Place { scratch, layout })
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The command on the store of this name.
    fn vellum(&self, store: &str, arguments: &[&str]) -> String {
        let vellum = std::env::var_os("VELLUM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_vellum").into());
        let mut command = Command::new(vellum);
        command.arg("--root").arg(self.path(store)).args(arguments);
        said(command)
    }

    /// Takes the store off the disk.
    fn reset(&self, store: &str) {
        self.vellum(store, &["system", "reset", "--force"]);
        assert!(!self.path(store).join("catalog.db").exists(), "the store is still there");
    }

    /// The image's layers, as its configuration names them.
    fn diff_ids(&self, store: &str, name: &str) -> Vec<String> {
        let inspected: Value =
            serde_json::from_str(&self.vellum(store, &["image", "inspect", "--json", name])).unwrap();
        strings(find(&inspected, "diff_ids").expect("an image has diff_ids"))
    }

    /// The tree that a fresh container of the image has.
    fn tree(&self, store: &str, name: &str) -> Snapshot {
        let container = self.vellum(store, &["create", name]);
        let root = self.vellum(store, &["mount", container.trim()]);
        let tree = Snapshot::of(Path::new(root.trim())).unwrap();
        self.vellum(store, &["umount", container.trim()]);
        self.vellum(store, &["rm", container.trim()]);
        tree
    }
}

/// Runs a command that must succeed, and gives what it printed.
fn said(mut command: Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    said(command)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first value of this key, however deep.
fn find<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

/// The layers of an OCI layout's only image, as its configuration names them.
fn layout_diff_ids(layout: &Path) -> Vec<String> {
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| read(&layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/")));
    let index = read(&layout.join("index.json"));
    let manifest = blob(&index["manifests"][0]["digest"]);
    strings(&blob(&manifest["config"]["digest"])["rootfs"]["diff_ids"])
}

/// The tree that umoci unpacks of a layout.
fn unpacked(layout: &Path, tag: &str, bundle: &Path) -> Snapshot {
    run("umoci", &["unpack", "--image", &format!("{}:{tag}", text(layout)), text(bundle)]);
    let tree = Snapshot::of(&bundle.join("rootfs")).unwrap();
    std::fs::remove_dir_all(bundle).unwrap();
    tree
}

/// That a tree is what another tool makes of the same image.
fn same(other: &Snapshot, ours: &Snapshot, what: &str) {
    assert!(other.len() > 1000, "{what}: the other tool unpacked only {} entries", other.len());
    // The root's own time: no layer lists the root, so it is of the moment of unpacking.
    let differences = other.differences(ours, Compare { root: false, ..Compare::ALL });
    assert!(
        differences.is_empty(),
        "{what}: {} differences\n{}",
        differences.len(),
        differences[..differences.len().min(20)].join("\n")
    );
}

/// The image in every format that there is: (name, place, whether blobs keep their digests).
fn formats(place: &Place) -> Vec<(&'static str, PathBuf)> {
    let layout = text(&place.layout);
    let tar = place.path("layout.tar");
    run("tar", &["-C", layout, "-cf", text(&tar), "."]);
    // What docker writes up to version 24, with links for engines older than 1.10.
    let old = place.path("docker-old.tar");
    run(
        "skopeo",
        &["copy", "-q", &format!("oci:{layout}:test"), &format!("docker-archive:{}:test:latest", text(&old))],
    );
    // What docker writes from version 25 on: an OCI layout with a manifest.json beside it.
    let folder = place.path("docker-new");
    run("cp", &["-a", "--reflink=auto", layout, text(&folder)]);
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"));
    let manifest = read(folder.join(blob(&read(folder.join("index.json"))["manifests"][0]["digest"])));
    let layers: Vec<_> =
        manifest["layers"].as_array().unwrap().iter().map(|layer| blob(&layer["digest"])).collect();
    let config = blob(&manifest["config"]["digest"]);
    let json = serde_json::json!([{"Config": config, "RepoTags": ["test:latest"], "Layers": layers}]);
    std::fs::write(folder.join("manifest.json"), json.to_string()).unwrap();
    let new = place.path("docker-new.tar");
    run("tar", &["-C", text(&folder), "-cf", text(&new), "."]);
    std::fs::remove_dir_all(folder).unwrap();
    vec![
        ("OCI layout", place.layout.clone()),
        ("OCI tar", tar),
        ("old docker archive", old),
        ("new docker archive", new),
    ]
}

#[test]
fn root_every_format_gives_the_tree_that_umoci_unpacks() {
    let place = match place() {
        Ok(place) => place,
        Err(reason) => skip!("{reason}"),
    };
    let other = unpacked(&place.layout, image::TAG, &place.path("bundle"));
    let diff_ids = layout_diff_ids(&place.layout);
    assert!(diff_ids.len() > 10, "an image of more than ten layers");
    for (number, (format, file)) in formats(&place).into_iter().enumerate() {
        let store = format!("store-{number}");
        place.vellum(&store, &["load", "-i", text(&file), "-t", "loaded"]);
        assert_eq!(place.diff_ids(&store, "loaded"), diff_ids, "{format}");
        same(&other, &place.tree(&store, "loaded"), format);
        place.vellum(&store, &["check"]);
        place.reset(&store);
    }
    place.scratch.close().unwrap();
}

#[test]
fn root_vfs_gives_the_tree_that_umoci_unpacks() {
    let place = match place() {
        Ok(place) => place,
        Err(reason) => skip!("{reason}"),
    };
    let other = unpacked(&place.layout, image::TAG, &place.path("bundle"));
    place.vellum("store", &["--driver", "vfs", "load", "-i", text(&place.layout), "-t", "loaded"]);
    same(&other, &place.tree("store", "loaded"), "vfs");
    place.vellum("store", &["check"]);
    place.reset("store");
    place.scratch.close().unwrap();
}

#[test]
fn root_every_saved_format_is_read_by_other_tools() {
    let place = match place() {
        Ok(place) => place,
        Err(reason) => skip!("{reason}"),
    };
    let other = unpacked(&place.layout, image::TAG, &place.path("bundle"));
    let diff_ids = layout_diff_ids(&place.layout);
    place.vellum("store", &["load", "-i", text(&place.layout), "-t", "loaded"]);
    for (name, arguments, transport) in [
        ("gzip.tar", &["--format", "oci"][..], "oci-archive"),
        ("plain.tar", &["--format", "oci", "--compression", "none"], "oci-archive"),
        ("zstd.tar", &["--format", "oci", "--compression", "zstd"], "oci-archive"),
        ("docker.tar", &["--format", "docker"], "docker-archive"),
    ] {
        let file = place.path(name);
        let mut save = vec!["save", "-o", text(&file)];
        save.extend(arguments);
        save.push("loaded");
        place.vellum("store", &save);
        let source = format!("{transport}:{}", text(&file));
        let config: Value = serde_json::from_str(&run("skopeo", &["inspect", "--config", &source])).unwrap();
        assert_eq!(strings(&config["rootfs"]["diff_ids"]), diff_ids, "{name}, as skopeo sees it");
        // skopeo copies, checking every digest; umoci unpacks that.
        let copy = place.path("copy");
        run("skopeo", &["copy", "-q", &source, &format!("oci:{}:copied", text(&copy))]);
        assert_eq!(layout_diff_ids(&copy), diff_ids, "{name}, as skopeo copies it");
        // This umoci knows no zstd.
        if name != "zstd.tar" {
            let tree = unpacked(&copy, "copied", &place.path("bundle"));
            same(&other, &tree, &format!("{name}, as umoci unpacks it"));
        }
        std::fs::remove_dir_all(copy).unwrap();
        // And back: all of it is known already.
        place.vellum("again", &["load", "-i", text(&file), "-t", "again"]);
        assert_eq!(place.diff_ids("again", "again"), diff_ids, "{name}, loaded again");
        std::fs::remove_file(file).unwrap();
    }
    same(&other, &place.tree("again", "again"), "saved and loaded again");
    place.reset("again");
    place.reset("store");
    place.scratch.close().unwrap();
}

#[test]
fn root_a_container_of_it_is_changed_committed_and_exported() {
    let place = match place() {
        Ok(place) => place,
        Err(reason) => skip!("{reason}"),
    };
    place.vellum("store", &["load", "-i", text(&place.layout), "-t", "loaded"]);
    place.vellum("store", &["create", "--name", "box", "loaded"]);
    let root = PathBuf::from(place.vellum("store", &["mount", "box"]).trim());
    run(
        "chroot",
        &[
            text(&root),
            "/bin/sh",
            "-c",
            "echo changed >/etc/hostname && rm -r /usr/share/zones /opt/links/first && mkdir /srv/new && chmod 700 /opt/big",
        ],
    );
    let tree = Snapshot::of(&root).unwrap();
    let told = place.vellum("store", &["diff", "box"]);
    for line in
        ["C /etc", "C /etc/hostname", "D /usr/share/zones", "D /opt/links/first", "A /srv/new", "C /opt/big"]
    {
        // Whether the image has /etc/hostname is debootstrap's affair.
        let added = line.replacen('C', "A", 1);
        assert!(told.lines().any(|told| told == line || told == added), "{line} is not told in\n{told}");
    }
    place.vellum("store", &["umount", "box"]);
    place.vellum("store", &["commit", "box", "changed"]);
    // The time of the root is that of the moment, and no layer lists it.
    same(&tree, &place.tree("store", "changed"), "committed");
    let exported = place.path("exported.tar");
    let file = std::fs::File::create(&exported).unwrap();
    let vellum = std::env::var_os("VELLUM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_vellum").into());
    let status = Command::new(vellum)
        .arg("--root")
        .arg(place.path("store"))
        .args(["export", "box"])
        .stdout(file)
        .status();
    assert!(status.unwrap().success());
    let flat = place.path("flat");
    std::fs::create_dir(&flat).unwrap();
    run(
        "tar",
        &["-C", text(&flat), "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", text(&exported)],
    );
    // GNU tar keeps ACLs in headers of its own and passes over those that docker, podman and umoci write.
    let no_acls = |name: &[u8]| !name.starts_with(b"system.posix_acl_");
    let extracted = Snapshot::of(&flat).unwrap().filtered_xattrs(no_acls);
    same(&tree.filtered_xattrs(no_acls), &extracted, "exported, as tar extracts it");
    place.vellum("store", &["check"]);
    place.reset("store");
    place.scratch.close().unwrap();
}
