//! What people read when something fails, word by word: the error, its causes, the hint; and the exit code.

mod common;

use common::{Store, is_root};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::process::Command;
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::skip;

/// A failure: the command line, its exit code, and what it says, in which `DIR` is the test's folder.
type Failure = (&'static str, i32, &'static str);

/// What fails in a store with the images `base:1` and `derived:2` on it, and a mounted container `c` of the former.
const FAILURES: &[Failure] = &[
    (
        "create nosuch",
        3,
        "error: cannot find the image 'nosuch': there is no such image\n\
         hint: `vellum images` lists what there is",
    ),
    (
        "diff nosuch",
        3,
        "error: cannot find the container 'nosuch': there is no such container\n\
         hint: `vellum ps` lists what there is",
    ),
    (
        "rollback c nosuch",
        4,
        "error: cannot roll back the container c: it is mounted\nhint: unmount it first (`vellum umount`)",
    ),
    (
        "snapshots c --remove nosuch",
        3,
        "error: cannot find the save point 'nosuch' of the container c: there is none\n\
         hint: `vellum snapshots` lists those there are",
    ),
    (
        "create --name c base:1",
        5,
        "error: cannot make the container 'c': another container has this name\n\
         hint: remove that one first, or choose another name",
    ),
    (
        "rm c",
        4,
        "error: cannot remove the container c: it is mounted\n\
         hint: unmount it first (`vellum umount`), or use --force",
    ),
    (
        "rmi base:1",
        4,
        "error: cannot remove the image 'base:1': a container was made of it\n\
         hint: remove what was made of it first, or use --force to remove the image and keep that",
    ),
    (
        "load -i nosuch.tar",
        3,
        "error: cannot open nosuch.tar\n  caused by: No such file or directory (os error 2)",
    ),
    (
        "load -i tree/etc/first",
        7,
        "error: tree/etc/first is not an image archive: it is neither a folder nor a tar\n\
         hint: give an OCI layout (folder or tar) or what `docker save` writes; a root file system is taken in by \
         `vellum import`",
    ),
    (
        "load -i cut.tar",
        7,
        "error: cut.tar is damaged: a tar header is cut off: it ends early, at offset 2048",
    ),
    (
        "load -i image.tar --platform linux/mips",
        3,
        "error: image.tar has no image for linux/mips; it has HOST\n\
         hint: choose one that is there with --platform OS/ARCHITECTURE",
    ),
    (
        "import cut.tar.gz x",
        7,
        "error: cannot import cut.tar.gz\n  caused by: cannot unpack the archive\n  \
         caused by: at offset 0: the archive ends early\n  caused by: the gzip stream ends early\n\
         hint: the archive is damaged, or was made wrongly: fetch it or save it again",
    ),
    (
        "import packed.xz x",
        8,
        "error: cannot import packed.xz\n  caused by: cannot decompress the archive\n  \
         caused by: compressed with xz; gzip, zstd and plain are supported\nhint: decompress it first",
    ),
    (
        "--driver nosuch images",
        2,
        "error: cannot use the driver 'nosuch': there is no driver of this name\n\
         hint: `vellum driver ls` lists what there is",
    ),
    (
        "--root DIR/nosuch diff c",
        3,
        "error: cannot open the store (DIR/nosuch): there is none\nhint: `vellum load` makes one",
    ),
    (
        "--root DIR/image.tar images",
        5,
        "error: cannot keep a store in DIR/image.tar\n  caused by: File exists (os error 17)\n\
         hint: a store is a folder: choose another with --root",
    ),
    (
        "save -o nosuch/x.tar base:1",
        3,
        "error: cannot write nosuch/x.tar\n  caused by: No such file or directory (os error 2)",
    ),
    (
        "save --format docker --compression gzip -o x.tar base:1",
        2,
        "error: a docker archive holds plain layers: leave --compression out",
    ),
    (
        "create --storage-opt size=1G base:1",
        8,
        "error: cannot make a container of base:1\n  \
         caused by: cannot create (layer NUMBER): overlay has no storage option 'size' here: \
         of all file systems only XFS keeps an overlay's upper within a project's limit\n\
         hint: keep the store on an XFS that is mounted with prjquota, or use the driver btrfs",
    ),
    ("unshare nosuch", 127, "error: cannot run nosuch\n  caused by: No such file or directory (os error 2)"),
];

#[test]
fn root_failures_are_told_with_cause_and_hint() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o image.tar base:1").ok();
    store.shell("head -c 2500 image.tar >cut.tar; tar cz tree | head -c 100 >cut.tar.gz; printf '\\3757zXZ\\0xxx' >packed.xz").ok();
    store.words("create --name c base:1").ok();
    store.words("mount c").ok();
    let dir = store.dir.path().to_str().unwrap().to_owned();
    let host = store.json("image inspect --json base:1")[0]["platform"].clone();
    let mut wrong = Vec::new();
    for (line, code, said) in FAILURES {
        let ran = store.words(&line.replace("DIR", &dir));
        let said = said.replace("DIR", &dir).replace("HOST", host.as_str().unwrap());
        let (before, after) = said.split_once("NUMBER").unwrap_or((&said, ""));
        let err = ran.err.trim_end();
        let as_said =
            if after.is_empty() { err == before } else { err.starts_with(before) && err.ends_with(after) };
        if !as_said || ran.code != Some(*code) || !ran.out.is_empty() {
            wrong.push(format!("$ vellum {line}\n{err}\n[{:?}] is not\n{said}\n[{code}]\n", ran.code));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A blob that was changed on its way, and a configuration that says another digest.
#[test]
fn root_wrong_digests_name_the_layer_and_the_archive() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o layout/ --compression none base:1").ok();
    store.shell("b=$(ls -S layout/blobs/sha256/* | head -1); printf X | dd of=$b bs=1 seek=600 conv=notrunc status=none").ok();
    let other = Store::new("overlay");
    let err = other.run(["load".as_ref(), "-i".as_ref(), store.path("layout").as_os_str()]).fails(7);
    assert!(err.starts_with(&format!("error: cannot load {}\n", store.path("layout").display())), "{err}");
    assert!(err.contains("cannot unpack layer 1 of the image (sha256:") && err.contains("\nhint: "), "{err}");
    assert_eq!(other.words("images -q").ok(), "");
    assert_eq!(other.json("info --json")["layers"], 0);
}

#[test]
fn root_stores_that_are_newer_are_left_alone() {
    if !is_root() {
        skip!("needs root");
    }
    if !common::has("python3") {
        skip!("needs python3");
    }
    for (change, code, hint) in [
        ("pragma user_version = 99", 8, "its format is 99"),
        ("update meta set value = 'new' where key = 'incompat'", 8, "it uses 'new'"),
    ] {
        let store = Store::with_images("overlay");
        store.shell(&format!("python3 -c 'import sqlite3; c = sqlite3.connect(\"root/catalog.db\"); c.execute(\"{}\"); c.commit()'", change.replace('\'', "\\x27"))).ok();
        let err = store.words("images").fails(code);
        assert!(
            err.contains(hint)
                && err.contains("hint: use the release of vellum that made it, or a newer one"),
            "{err}"
        );
    }
}

#[test]
fn loop_places_where_no_store_can_be_are_told() {
    if !is_root() {
        skip!("needs root");
    }
    let scratch = match Scratch::new(Kind::Tmpfs) {
        Ok(scratch) => scratch,
        Err(error) => skip!("{error}"),
    };
    let store = Store::with_images("overlay");
    let root = scratch.path().join("store");
    let at = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        common::Ran::of(command.arg("--root").arg(&root).args(line.split_whitespace()).output().unwrap())
    };
    at("images").ok();
    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", how]).arg(scratch.path()).status().unwrap();
        assert!(done.success());
    };
    remount("remount,ro");
    let err = at("images").fails(1);
    assert!(
        err.contains("Read-only file system") && err.contains("hint: its file system is mounted read-only"),
        "{err}"
    );
    remount("remount,rw");
    // An overlay refuses to lie on an overlay; the store that is made there uses what works.
    store.words("create --name c base:1").ok();
    let on_overlay = std::path::PathBuf::from(store.words("mount c").ok()).join("store");
    let line = format!("--driver overlay --root {} images", on_overlay.display());
    let err = store.run(line.split(' ')).fails(8);
    assert!(err.starts_with("error: cannot use the driver overlay: ") && err.contains("overlayfs"), "{err}");
    assert!(err.contains("hint: put the store on ext4"), "{err}");
    // Another user's folder.
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "54324", "--regid", "54324", "--clear-groups"]);
    let vellum = scratch.path().join("vellum");
    common::copy_command(&vellum);
    command.arg(vellum).arg("--root").arg(&root).arg("images");
    let err = common::Ran::of(command.output().unwrap()).fails(1);
    assert!(err.contains("Permission denied") && err.contains("hint: "), "{err}");
    scratch.close().unwrap();
}

/// A store with the image `base:1`, and what is in its folder.
fn with_base() -> (Store, String) {
    let store = Store::new("vfs");
    store.shell("mkdir tree && echo x >tree/f && $V import tree base:1").ok();
    let made = made(&store);
    (store, made)
}

/// What lies in a store, but for the catalog's own files and the locks.
fn made(store: &Store) -> String {
    store.shell("find root -not -name 'catalog.db*' -not -path '*/locks/*' | sort").ok()
}

/// A NUL is not here: the kernel lets no command line have one. The type of the name refuses it, as its own test says.
#[test]
fn root_names_of_containers_that_would_be_paths_or_options_are_refused() {
    if !is_root() {
        skip!("needs root");
    }
    let (store, before) = with_base();
    let (long, id) = ("n".repeat(300), "a".repeat(64));
    let texts = [
        "", ".", "..", "/", "../x", "a/b", "/etc", "-", "-a", "--help=x", "_a", ".a", "a b", "a\nb", "é",
        &long, &id,
    ];
    let bytes: [&[u8]; 3] = [b"\xff", b"a\xffb", b"a\xc3"];
    for name in texts.iter().map(|text| text.as_bytes()).chain(bytes) {
        let joined = OsString::from_vec([b"--name=".as_slice(), name].concat());
        let refused = store.run(["create".into(), joined, "base:1".into()]);
        assert!(refused.out.is_empty(), "{refused:?}");
        refused.fails(2);
        let apart = OsString::from_vec(name.to_vec());
        store.run(["create".into(), "--name".into(), apart, "base:1".into()]).fails(2);
    }
    assert_eq!(store.words("ps -q").ok(), "");
    assert_eq!(made(&store), before);
}

#[test]
fn root_storage_options_that_are_none_are_refused() {
    if !is_root() {
        skip!("needs root");
    }
    let (store, before) = with_base();
    let huge = "x".repeat(100_000);
    let cases = [
        ("size".to_owned(), 2, "write it as NAME=VALUE"),
        (String::new(), 2, "write it as NAME=VALUE"),
        ("=1G".to_owned(), 2, "write it as NAME=VALUE"),
        ("=".to_owned(), 2, "write it as NAME=VALUE"),
        ("nosuch=1".to_owned(), 8, "no storage option 'nosuch'"),
        ("nosuch=".to_owned(), 8, "no storage option 'nosuch'"),
        (format!("nosuch={huge}"), 8, "no storage option 'nosuch'"),
        (format!("{huge}=1"), 8, "no storage option 'xxx"),
        ("a\nb=1".to_owned(), 8, r"no storage option 'a\nb'"),
    ];
    for (given, code, said) in cases {
        let error = store.run(["create", "--storage-opt", &given, "base:1"]).fails(code);
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(store.words("ps -q").ok(), "");
    assert_eq!(made(&store), before);
}
