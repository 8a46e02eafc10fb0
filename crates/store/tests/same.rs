//! What a store gives back is the same whichever driver keeps it: the same image, loaded with each, is saved bit for bit the same.

mod common;

use common::*;
use std::io;
use std::os::fd::AsFd as _;
use vellum_archive::XattrForm;
use vellum_archive::tree::{Form, Visit, walk};
use vellum_archive::write::TarWriter;
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::tree::Tree;

/// A layer of this tree.
fn tar_of(tree: &Tree) -> Vec<u8> {
    let scratch = Scratch::new(Kind::Here).unwrap_or_else(|error| panic!("{error}"));
    let folder = scratch.folder("tree").unwrap();
    tree.make(&folder).unwrap();
    let mut tar = TarWriter::new(Vec::new());
    let form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: false };
    walk(std::fs::File::open(&folder).unwrap().as_fd(), form, &mut |path, node| {
        tar.node(path, node).map(|_| Visit::Enter).map_err(io::Error::other)
    })
    .unwrap();
    tar.finish().unwrap()
}

/// Everything that a layer can hold; deletions, replacements and links across layers; entries twice; nothing at all.
fn image() -> Image {
    let base = Tree::new()
        .root()
        .mode(0o751)
        .dir("d", 0o2755)
        .file("d/short", "x", 0o4711)
        .file("d/object", pattern(70_000), 0o640)
        .owner(70_000, 3_000_000)
        .time(-2, 250_000_000)
        .hard_link("d/second", "d/object")
        .xattr("user.note", [0, 255])
        .file("d/large", pattern(3 << 20), 0o644)
        .caps(1 << 13)
        .file("d/shared", "", 0o600)
        .acl(&[(1000, 6)])
        .symlink("l", "/nowhere/../at all")
        .fifo("pipe")
        .char_device("null", 1, 3)
        .block_device("loop", 7, 70_000)
        .file(b"caf\xe9\n", "not UTF-8", 0o600)
        .file("n".repeat(250), "a long name", 0o600)
        .dir("gone", 0o755)
        .file("gone/deep", "y", 0o644)
        .file("was-file", "z", 0o644);
    let twice = Tar::new()
        .file("d/short", &pattern(300))
        .file("d/short", &pattern(5000))
        .dir("was-file")
        .file("was-file/in", b"now a directory")
        .whiteout("gone")
        .hard_link("d/third", "d/large")
        .file("unlisted/deep/file", &pattern(100))
        .end();
    let opaque = Tar::new().dir("d").file("d/.wh..wh..opq", b"").file("d/only", b"left").end();
    let padded = [Tar::new().end(), vec![0; 8704]].concat();
    Image::new(vec![tar_of(&base), twice, opaque, padded])
}

/// All that `save` writes of an image comes from these.
fn saved(store: &Store, name: &str) -> (Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
    let row = store.find_image(name).unwrap();
    let tar = |layer: LayerRow| {
        let mut out = Vec::new();
        store.layer_tar(layer.id, &mut out).unwrap();
        out
    };
    let layers = store.image_layers(&row.id).unwrap().into_iter().map(tar).collect();
    (store.image_config(&row.id).unwrap(), store.image_manifest(&row.id).unwrap().unwrap(), layers)
}

#[test]
fn root_every_driver_gives_an_image_back_bit_for_bit() {
    let test = "root_every_driver_gives_an_image_back_bit_for_bit";
    if !rustix::process::geteuid().is_root() {
        return vellum_testkit::skip::record(test, "layers of all kinds of files need root");
    }
    let image = image();
    // XFS has names of its own for ACLs, which no driver may take for attributes of files.
    let pools = [
        ("composefs", PoolFs::Xfs),
        ("composefs", PoolFs::Btrfs),
        ("overlay", PoolFs::Xfs),
        ("vfs", PoolFs::Xfs),
    ];
    let pools = pools.into_iter().filter_map(|(driver, fs)| Place::on_pool(test, driver, fs));
    let places = DRIVERS.iter().filter_map(|driver| Place::new(test, driver)).chain(pools);
    let mut loaded = 0;
    for place in places {
        let driver = &place.driver;
        let store = place.open();
        store.load_image(image.input(&["all"], false), &Silent).unwrap();
        let (config, manifest, tars) = saved(&store, "all");
        assert!(config == image.config && manifest == b"{\"schemaVersion\":2}", "{driver}");
        assert_eq!(tars.len(), image.tars.len(), "{driver}");
        for (number, (got, expected)) in tars.iter().zip(&image.tars).enumerate() {
            assert!(got == expected, "{driver}: layer {number} has come back otherwise");
        }
        assert_clean(&store);
        // What only replaced entries had goes with the rest.
        store.remove_image("all", false).unwrap();
        store.gc(false).unwrap();
        let left = tree(&store.data().join(driver)).into_iter().filter(|path| path.starts_with("objects/"));
        assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new(), "{driver}");
        loaded += 1;
    }
    assert!(loaded > 0, "no driver works here");
}
