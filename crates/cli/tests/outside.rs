//! What comes from outside and goes there: names, paths, texts and digests that are unusual and not wrong.

mod common;

use common::{Ran, Store, is_root};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use vellum_testkit::skip;

/// The diff IDs of an image, as its configuration has them.
fn diff_ids(store: &Store, image: &str) -> Value {
    store.json(&format!("image inspect --json {image}"))[0]["config"]["rootfs"]["diff_ids"].clone()
}

/// A folder with a layout of one image `name`, whose layer's blob is named by a SHA-512 digest and whose configuration has more.
fn layout_of(store: &Store, folder: &str, name: &str, more: &Value) {
    let root = store.path(folder);
    std::fs::create_dir_all(&root).unwrap();
    let put = |algorithm: &str, bytes: &[u8]| {
        std::fs::write(root.join("bytes"), bytes).unwrap();
        let sum = store.shell(&format!("{algorithm}sum <{folder}/bytes && rm {folder}/bytes")).ok();
        let hex = sum.split(' ').next().unwrap().to_owned();
        std::fs::create_dir_all(root.join("blobs").join(algorithm)).unwrap();
        std::fs::write(root.join("blobs").join(algorithm).join(&hex), bytes).unwrap();
        json!({ "digest": format!("{algorithm}:{hex}"), "size": bytes.len() })
    };
    let typed = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    };
    // The least that is a tar: its end.
    let layer = put("sha512", &[0; 1024]);
    let diff_id = put("sha256", &[0; 1024])["digest"].clone();
    let mut config = json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config = put("sha256", config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": typed(config, "config.v1+json"),
        "layers": [typed(layer, "layer.v1.tar")] });
    let mut entry = typed(put("sha256", manifest.to_string().as_bytes()), "manifest.v1+json");
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(root.join("index.json"), index.to_string()).unwrap();
    std::fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A kept blob of a SHA-512 digest has a name that no tar header has room for.
#[test]
fn root_blobs_with_long_digests_come_back() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("vfs");
    layout_of(&store, "layout", "long:1", &json!({}));
    store.words("load --keep-blobs -i layout").ok();
    for save in ["$V save -o long.tar long:1", "$V save long:1 >long.tar"] {
        store.shell(save).ok();
        let other = Store::new("vfs");
        let archive = store.path("long.tar");
        other.run(["load".as_ref(), "--keep-blobs".as_ref(), "-i".as_ref(), archive.as_os_str()]).ok();
        assert_eq!(diff_ids(&other, "long:1"), diff_ids(&store, "long:1"), "{save}");
        let listed = store.shell("tar tf long.tar").ok();
        assert!(listed.lines().any(|line| line.len() == "blobs/sha512/".len() + 128), "{listed}");
    }
}

/// What an image's configuration says is shown, and is no command to the terminal.
#[test]
fn root_configurations_do_not_speak_to_the_terminal() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("vfs");
    let more = json!({
        "author": "\u{1b}[2J", "config": { "User": "root\nNames: other", "Cmd": ["\u{9b}1A"] },
        // So docker writes that it does not know.
        "created": "0001-01-01T00:00:00Z",
        "history": [{ "created": "0001-01-01T00:00:00Z", "created_by": "\u{1b}]0;title\u{7}", "comment": "a\nb" }],
    });
    layout_of(&store, "layout", "loud:1", &more);
    store.words("load -i layout").ok();
    let shown = ["image inspect loud:1", "image history --no-trunc loud:1", "images"].map(|line| {
        let shown = store.words(line).ok();
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
        shown
    });
    assert!(shown[0].contains("\nUser: root\\nNames: other\n"), "{}", shown[0]);
    assert!(shown[1].contains("N/A") && shown[1].contains("a\\nb"), "{}", shown[1]);
    assert!(shown[2].contains("N/A"), "not the newest of all images: {}", shown[2]);
    assert_eq!(store.json("images --json")[0]["created"], Value::Null);
}

#[test]
fn root_a_layout_takes_images_of_one_tag_and_goes_on_where_a_killed_save_was() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("vfs");
    store.words("image tag base:1 one").ok();
    store.words("image tag derived:2 two").ok();
    store.shell("mkdir -p layout/blobs/sha256 && echo half >layout/blobs/sha256/.tmp-1").ok();
    // Both at once: neither takes the other's entry out of the index.
    store.shell("$V save -o layout/ one & $V save -o layout/ two && wait $!").ok();
    store.words("save -o layout/ one").ok();
    let other = Store::new("vfs");
    let loaded = other.run(["load".as_ref(), "-i".as_ref(), store.path("layout").as_os_str()]).ok();
    assert_eq!(
        loaded.lines().collect::<BTreeSet<_>>(),
        BTreeSet::from(["Loaded image: one:latest", "Loaded image: two:latest"])
    );
    assert!(!store.path("layout/blobs/sha256/.tmp-1").exists());
    store.shell("mkdir mine && touch mine/file").ok();
    assert!(store.words("save -o mine one").fails(5).contains("neither empty nor an OCI layout"));
}

/// `-` is what it is to other tools: standard input and output.
#[test]
fn root_a_dash_is_standard_input_and_output() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("vfs");
    store.words("create --name c base:1").ok();
    assert_eq!(store.shell("$V save -o - base:1 | $V load -i -").ok(), "Loaded image: base:1");
    assert!(store.shell("$V export -o - c | tar t").ok().contains("etc/first"));
    assert!(!store.path("-").exists());
}

/// A store at another place of the test's folder, which goes also when the test fails.
struct Elsewhere<'a>(&'a Store, std::path::PathBuf);

impl Elsewhere<'_> {
    fn run(&self, line: &str) -> std::process::Output {
        self.0.command().arg("--root").arg(&self.1).args(line.split(' ')).output().unwrap()
    }
}

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        let _ = self.run("system reset -f");
    }
}

/// A store's folder may have any name: what is printed is the path itself, and JSON stays JSON.
#[test]
fn root_a_store_in_a_folder_of_any_name() {
    use std::os::unix::ffi::OsStrExt as _;
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("vfs");
    let name = std::ffi::OsStr::from_bytes(b"a\xff,b:c\\d\ne");
    let strange = Elsewhere(&store, store.path("strange").join(name));
    let done = |line: &str| {
        let out = strange.run(line);
        assert!(out.status.success(), "{line}: {out:?}");
        out.stdout
    };
    done("import tree base:1");
    done("create --name c base:1");
    let mut printed = done("mount c");
    assert_eq!(printed.pop(), Some(b'\n'));
    assert!(std::path::Path::new(std::ffi::OsStr::from_bytes(&printed)).join("etc/first").exists());
    for line in ["info --json", "ps --json"] {
        serde_json::from_slice::<Value>(&done(line)).unwrap();
    }
    assert_eq!(done("ps").iter().filter(|byte| **byte == b'\n').count(), 2, "a line for a container");
    done("umount c");
    done("system reset -f");
}

/// A store is made in a folder of its own, and takes nothing else with it when it goes.
#[test]
fn root_what_else_lies_in_a_folder_stays() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("vfs");
    store.shell("mkdir -p home/tmp home/pool && touch home/tmp/mine && chmod 750 home").ok();
    let at = |folder: &str, line: &str| store.words(&format!("--root {folder} {line}"));
    for line in ["images", "load -i nosuch", "info", "init"] {
        assert!(at("home", line).fails(2).contains("it is not empty ("), "{line}");
    }
    at("home", "system reset -f").fails(3);
    assert_eq!(
        store.shell("stat -c %a home; ls home home/tmp").ok(),
        "750\nhome:\npool\ntmp\n\nhome/tmp:\nmine"
    );
    // What came into a store's folder later is not the store's either.
    store.shell("mkdir -p own/lost+found").ok();
    at("own", "init").ok();
    store.shell("mkdir own/more && touch own/more/file own/notes").ok();
    at("own", "info").ok();
    at("own", "system reset -f").ok();
    assert_eq!(store.shell("ls own own/more").ok(), "own:\nlost+found\nmore\nnotes\n\nown/more:\nfile");
}

/// Who asks for a digest relies on it: no name has that of something else.
#[test]
fn root_a_digest_in_a_name_is_the_images() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("vfs");
    let other = format!("base@sha256:{}", "ab".repeat(32));
    for line in ["image tag base:1", "import tree", "commit c", "load -i image.tar -t"] {
        assert!(
            store.words(&format!("{line} {other}")).fails(2).contains("a digest cannot be given"),
            "{line}"
        );
    }
    layout_of(&store, "layout", &other, &json!({}));
    let index: Value =
        serde_json::from_slice(&std::fs::read(store.path("layout/index.json")).unwrap()).unwrap();
    let loaded = store.words("load -i layout");
    assert!(loaded.err.contains("is no name of this image"), "{loaded:?}");
    assert!(loaded.ok().starts_with("Loaded image ID: "));
    store.words(&format!("create {other}")).fails(3);
    let own = format!("base@{}", index["manifests"][0]["digest"].as_str().unwrap());
    layout_of(&store, "layout", &own, &json!({}));
    assert_eq!(store.words("load -i layout").ok(), format!("Loaded image: {own}"));
    store.words(&format!("create {own}")).ok();
    // A docker archive tells no digest that could be looked at.
    store.words("save --format docker -o docker.tar base:1").ok();
    store
        .shell(&format!("mkdir d && tar xf docker.tar -C d && sed -i 's/base:1/{other}/' d/manifest.json"))
        .ok();
    assert!(store.words("load -i d").ok().starts_with("Loaded image ID: "));
}

/// What never ends is not copied until the disk is full.
#[test]
fn root_what_has_no_end_is_refused_at_its_beginning() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("vfs");
    for (endless, why) in [
        ("yes", "neither a folder nor a tar"),
        ("cat /dev/zero", "an empty tar"),
        ("yes | gzip -1", "neither a folder nor a tar"),
    ] {
        let said = store.shell(&format!("{endless} | timeout 60 $V load")).fails(7);
        assert!(said.contains(why), "{endless}: {said}");
    }
    let said = store.words("import . itself").fails(2);
    assert!(said.contains("the store itself lies in it"), "{said}");
    store.words("create --name c base:1").ok();
    // What lies in the store, as a container does, is taken as any other folder.
    let mounted = store.words("mount c").ok();
    store.words(&format!("import {mounted} taken")).ok();
}

/// A path that is too long for the catalog is told before anything is made there; up to that, everything works.
#[test]
fn root_a_store_in_a_deep_folder() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    let of_length = |length: usize| {
        let mut path = store.dir.path().to_str().unwrap().to_owned();
        while path.len() + 202 < length {
            path.push_str(&format!("/{}", "d".repeat(100)));
        }
        path.push_str(&format!("/{}", "e".repeat(length - path.len() - 1)));
        Elsewhere(&store, path.into())
    };
    let deep = of_length(481);
    let refused = Ran::of(deep.run("import tree base:1"));
    assert!(refused.fails(2).contains("its path is longer than 480 bytes"));
    assert!(!deep.1.exists());
    let deep = of_length(480);
    for line in
        ["import tree base:1", "create --name c base:1", "mount c", "commit c new:1", "umount c", "check"]
    {
        Ran::of(deep.run(line)).ok();
    }
    std::fs::write(deep.1.join("catalog.db"), "no catalog").unwrap();
    Ran::of(deep.run("check --repair")).ok();
}
