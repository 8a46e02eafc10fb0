//! Other tools read what `save` writes, and `load` reads what they write. Each tool that is not installed skips its test.

mod common;

use common::{Ran, Store, has, is_root};
use std::path::Path;
use vellum_testkit::skip;

/// The diff IDs of an image, as its configuration has them.
fn diff_ids(store: &Store, image: &str) -> serde_json::Value {
    store.json(&format!("image inspect --json {image}"))[0]["config"]["rootfs"]["diff_ids"].clone()
}

/// Why a test with these tools cannot be made here, if so.
fn refused(tools: &[&str]) -> Option<String> {
    if !is_root() {
        return Some("needs root".into());
    }
    tools.iter().find(|tool| !has(tool)).map(|tool| format!("{tool} is not installed"))
}

/// A tool that keeps containers of its own, with its storage in a folder that goes away with it.
struct Podman<'a>(&'a Store);

impl Podman<'_> {
    fn shell(&self, line: &str) -> Ran {
        // vfs needs no mounts that a killed test would leave behind.
        let options = "--root $PWD/podman/root --runroot $PWD/podman/run --storage-driver vfs";
        self.0.shell(&format!("podman() {{ command podman {options} \"$@\"; }}; buildah() {{ command buildah {options} \"$@\"; }}; {line}"))
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.shell(
            "podman umount --all; podman rm --all --force; podman rmi --all --force; buildah rm --all",
        );
    }
}

/// Every form that `save` writes: (file, arguments, the transport that others read it by).
const FORMS: [(&str, &str, &str); 5] = [
    ("gzip.tar", "", "oci-archive"),
    ("zstd.tar", "--compression zstd", "oci-archive"),
    ("plain.tar", "--compression none", "oci-archive"),
    ("docker.tar", "--format docker", "docker-archive"),
    ("layout/", "", "oci"),
];

#[test]
fn root_podman_and_vellum_read_each_other() {
    if let Some(reason) = refused(&["podman", "buildah"]) {
        skip!("{reason}");
    }
    let store = Store::with_images("overlay");
    let podman = Podman(&store);
    for (file, arguments, transport) in FORMS {
        store.words(&format!("save -o {file} {arguments} derived:2")).ok();
        // podman tells an archive's kind by itself; of a layout's folder it must be told, and knows it by its tag.
        let source = if transport == "oci" { "oci:layout:2".to_owned() } else { file.to_owned() };
        let loaded = match transport {
            "oci" => podman.shell(&format!("podman pull -q {source} && podman image ls -q --no-trunc")),
            _ => podman.shell(&format!("podman load -q -i {source} && podman image ls -q --no-trunc")),
        };
        let id = store.json("image inspect --json derived:2")[0]["id"].as_str().unwrap().to_owned();
        assert!(loaded.ok().contains(&id), "{file}: podman knows it by the same id");
        podman.shell("podman rmi -a -f").ok();
    }
    // What podman has changed and saved comes back.
    let containerfile = "FROM derived:2\\nCOPY added /added\\nENV WHO=podman\\n";
    podman
        .shell(&format!(
            "podman load -q -i docker.tar && echo hi >added && printf '{containerfile}' >Containerfile && \
             buildah build -q -t made:3 . && \
             podman save -q --format docker-archive -o from-podman.tar made:3 && \
             podman save -q --format oci-archive -o from-podman.oci made:3 && \
             podman save -q --format oci-dir -o from-podman made:3 && podman save -q -m -o several.tar made:3 derived:2 && \
             buildah push -q made:3 oci:from-buildah:3 && \
             podman image inspect --format '{{{{range .RootFS.Layers}}}}{{{{.}}}} {{{{end}}}}' made:3 >layers"
        ))
        .ok();
    let layers = std::fs::read_to_string(store.path("layers")).unwrap();
    for (file, name) in [
        ("from-podman.tar", "localhost/made:3"),
        ("from-podman.oci", "localhost/made:3"),
        ("from-podman", "localhost/made:3"),
        ("several.tar", "localhost/made:3"),
        ("from-buildah", ""),
    ] {
        let other = Store::new("overlay");
        let loaded = other.run(["load", "-t", "x:1", "-i", store.path(file).to_str().unwrap()]);
        let name = if file == "several.tar" {
            // Several images cannot have one name.
            loaded.fails(2);
            let loaded = other.run(["load", "-i", store.path(file).to_str().unwrap()]).ok();
            assert_eq!(loaded.lines().count(), 2, "{loaded}");
            name
        } else {
            assert!(loaded.ok().contains(name), "{file}");
            "x:1"
        };
        let ids = diff_ids(&other, name);
        let ids: Vec<&str> = ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        assert_eq!(ids, layers.split_whitespace().collect::<Vec<_>>(), "{file}");
        other.words(&format!("create --name c {name}")).ok();
        let root = other.words("mount c").ok();
        assert_eq!(std::fs::read_to_string(Path::new(&root).join("added")).unwrap(), "hi\n");
        assert_eq!(std::fs::read_to_string(Path::new(&root).join("etc/new")).unwrap(), "new\n");
        other.words("umount c").ok();
    }
}

#[test]
fn root_skopeo_and_vellum_read_each_other() {
    if let Some(reason) = refused(&["skopeo"]) {
        skip!("{reason}");
    }
    let store = Store::with_images("overlay");
    for (file, arguments, transport) in FORMS {
        store.words(&format!("save -o {file} {arguments} derived:2")).ok();
        let tag = if transport == "oci" { ":2" } else { "" };
        let source = format!("{transport}:{}{tag}", file.trim_end_matches('/'));
        for target in ["oci:copy:again", "oci-archive:copy:again", "docker-archive:copy:again:1", "dir:copy"]
        {
            // skopeo turns no zstd into docker's plain layers.
            if file == "zstd.tar" && target.starts_with("docker-archive") {
                continue;
            }
            store.shell(&format!("rm -rf copy && skopeo copy -q --insecure-policy {source} {target}")).ok();
            // A folder of blobs without an index is none of the formats that are taken in.
            if target == "dir:copy" {
                store.words("load -i copy").fails(7);
                continue;
            }
            let other = Store::new("vfs");
            other.run(["load", "-q", "-t", "x:1", "-i", store.path("copy").to_str().unwrap()]).ok();
            assert_eq!(diff_ids(&other, "x:1"), diff_ids(&store, "derived:2"), "{file} by {target}");
        }
    }
}

#[test]
fn root_containerd_reads_what_is_saved() {
    if let Some(reason) = refused(&["containerd", "ctr"]) {
        skip!("{reason}");
    }
    let store = Store::with_images("overlay");
    for (file, arguments, _) in &FORMS[..4] {
        store.words(&format!("save -o {file} {arguments} derived:2")).ok();
    }
    let line = "mkdir c && cat >c/config.toml <<END\nversion = 2\nroot = \"$PWD/c/root\"\nstate = \"$PWD/c/state\"\n\
                disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"$PWD/c/socket\"\nEND\n\
                containerd --config c/config.toml >c/log 2>&1 & server=$!\ntrap 'kill $server; wait $server' EXIT\n\
                for try in $(seq 300); do [ -S c/socket ] && break; sleep 0.1; done\n\
                for file in gzip.tar zstd.tar plain.tar docker.tar; do\n\
                ctr -a c/socket images import --all-platforms --snapshotter native $file || exit 1\n\
                ctr -a c/socket images export $file.out docker.io/library/derived:2 || exit 1\n\
                ctr -a c/socket images rm docker.io/library/derived:2; done";
    store.shell(line).ok();
    for (file, ..) in &FORMS[..4] {
        let other = Store::new("vfs");
        let out = store.path(&format!("{file}.out"));
        assert_eq!(
            other.run(["load", "-i", out.to_str().unwrap()]).ok(),
            "Loaded image: derived:2",
            "{file}"
        );
        assert_eq!(diff_ids(&other, "derived:2"), diff_ids(&store, "derived:2"), "{file}");
    }
}

/// Where the tools of composefs have mounted something.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn root_the_composefs_tools_read_and_mount_a_stores_images() {
    // They tell no version.
    let there = |tool: &&str| {
        let found = std::process::Command::new("which").arg(tool).output();
        found.is_ok_and(|found| found.status.success())
    };
    let tools = ["composefs-info", "mkcomposefs", "mount.composefs", "setfattr"];
    if let Some(missing) = tools.iter().find(|tool| !there(tool)) {
        skip!("{missing} is not installed");
    }
    if let Some(reason) = refused(&[]) {
        skip!("{reason}");
    }
    let store = Store::new("composefs");
    store
        .shell(
            "mkdir -p t/d theirs && echo short > t/short && : > t/empty && head -c 5000 /dev/urandom > t/d/object &&
             head -c 300000 /dev/urandom > t/d/large && ln -s short t/link && mknod t/null c 1 3 && mkfifo t/pipe &&
             setfattr -n user.note -v text t/d/object && setfattr -n trusted.overlay.opaque -v y t/d && chown 7:8 t/d/large &&
             tar --xattrs --xattrs-include='*' -C t -cf t.tar . && $V import t.tar base:1 && $V create --name c base:1 && $V mount c",
        )
        .ok();
    // Every object is where the image says, under the digest that the tools compute; and they make the same of the same tree.
    let listed = store.shell("composefs-info objects root/composefs/*/image | sort").ok();
    let kept = store.shell("cd root/composefs/objects && find * -type f | sort").ok();
    assert_eq!(listed, kept);
    let missing =
        store.shell("composefs-info --basedir=root/composefs/objects missing-objects root/composefs/*/image");
    assert_eq!(missing.ok(), "");
    store.shell("mkcomposefs --digest-store=theirs t theirs.img").ok();
    assert_eq!(store.shell("cd theirs && find * -type f | sort").ok(), kept);
    // But for the size that the root itself has.
    let dump = |image: &str| store.shell(&format!("composefs-info dump {image} | tail -n +2")).ok();
    assert_eq!(dump("root/composefs/*/image"), dump("theirs.img"));
    store.shell("mkdir mounted && mount.composefs root/composefs/*/image mounted -o basedir=root/composefs/objects").ok();
    let _mounted = Mounted(store.path("mounted"));
    store.shell("tar -C t -cf - . | tar -C mounted -df -").ok();
}
