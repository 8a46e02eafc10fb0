//! A load that fails leaves the store as it was: not a file more, none changed, nothing to collect.

mod common;

use common::*;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use vellum_archive::compression::Compression;
use vellum_store::*;
use vellum_types::Digest;

/// What is below a store's root: kind and mode, size, time of change of contents, and the contents. Without the catalog, that
/// counts what was tried, and the locks, that are files without contents.
fn state(root: &Path) -> BTreeMap<String, (u32, u64, i64, Digest)> {
    let paths =
        tree(root).into_iter().filter(|path| !path.starts_with("catalog.db") && !path.starts_with("locks"));
    let facts = |path: String| {
        let at = root.join(&path);
        let facts = at.symlink_metadata().unwrap();
        let (contents, size, time) = match () {
            () if facts.is_file() => (std::fs::read(&at).unwrap(), facts.len(), facts.mtime()),
            () if facts.is_symlink() => {
                (std::fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes(), 0, 0)
            }
            // A folder's own size and time tell of names that came and went.
            () => (Vec::new(), 0, 0),
        };
        (path, (facts.mode(), size, time, Digest::sha256(&contents)))
    };
    paths.map(facts).collect()
}

/// The store has a folder's first layer of every input already, so that a failure must not take what is shared.
fn base() -> Image {
    Image::new(vec![Image::simple().tars.remove(0)])
}

type Input = fn() -> ImageInput<'static>;

/// What fails, and the error's words.
const INPUTS: &[(&str, Input, &str)] = &[
    ("the last layer is another than the configuration says", wrong_diff_id, "configuration says"),
    ("the last layer's gzip is cut off", cut_gzip, "ends early"),
    ("an entry of the second layer leads out", || hostile(Tar::new().file("usr/../../x", b"out")), "'..'"),
    (
        "a hard link of the second layer leads nowhere",
        || hostile(Tar::new().hard_link("etc/h", "no/such")),
        "no/such",
    ),
    ("the second layer is no tar", no_tar, ""),
    ("a layer is missing", missing, "layers"),
];

fn wrong_diff_id() -> ImageInput<'static> {
    let image = Image::simple();
    let mut input = image.input(&["x"], true);
    let mut other = image.clone();
    other.tars[2] = Tar::new().file("etc/c", b"other").end();
    input.layers[2] = Box::new(other.layer(2, Compression::Gzip));
    input
}

fn cut_gzip() -> ImageInput<'static> {
    let image = Image::simple();
    let mut input = image.input(&["x"], true);
    let mut cut = image.layer(2, Compression::Gzip);
    cut.blob.truncate(cut.blob.len() / 2);
    cut.facts = None;
    input.layers[2] = Box::new(cut);
    input
}

fn hostile(second: Tar) -> ImageInput<'static> {
    let mut tars = Image::simple().tars;
    tars[1] = second.end();
    Image::new(tars).input(&["x"], true)
}

fn no_tar() -> ImageInput<'static> {
    let mut tars = Image::simple().tars;
    tars[1] = vec![b'x'; 4096];
    Image::new(tars).input(&["x"], true)
}

fn missing() -> ImageInput<'static> {
    let mut input = Image::simple().input(&["x"], true);
    input.layers.pop();
    input
}

#[test]
fn root_a_failed_load_leaves_the_store_as_it_was() {
    for driver in DRIVERS {
        let Some(place) = Place::new("root_a_failed_load_leaves_the_store_as_it_was", driver) else {
            continue;
        };
        let store = place.open();
        let kept = base();
        store.load_image(kept.input(&["kept"], true), &Silent).unwrap();
        store.gc(false).unwrap();
        let before = state(store.data());
        for (what, input, said) in INPUTS {
            let error = store.load_image(input(), &Silent).unwrap_err();
            assert!(
                matches!(error.code(), Code::Archive | Code::Invalid),
                "{driver}, {what}: {}",
                told(&error)
            );
            assert!(told(&error).contains(said), "{driver}, {what}: {}", told(&error));
            let after = state(store.data());
            let changed: Vec<_> = before
                .keys()
                .chain(after.keys())
                .filter(|path| before.get(*path) != after.get(*path))
                .collect();
            assert!(changed.is_empty(), "{driver}, {what}: {changed:#?}");
            assert_nothing_to_collect(&store);
            let images: Vec<_> = store.images().unwrap().into_iter().map(|row| row.id).collect();
            assert_eq!(images, [kept.id()], "{driver}, {what}");
        }
        assert_clean(&store);
        // What failed can be loaded once it is right.
        let report = store.load_image(Image::simple().input(&["x"], true), &Silent).unwrap();
        assert_eq!((report.layers_new, report.layers_shared), (2, 1));
        assert_clean(&store);
    }
}

/// A layer whose reader panics.
struct Broken;

impl LayerSource for Broken {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        panic!("as a program's own reader may")
    }
}

#[test]
fn root_a_source_that_panics_ends_the_load_and_leaves_a_store_that_works() {
    let Some(place) =
        Place::new("root_a_source_that_panics_ends_the_load_and_leaves_a_store_that_works", "overlay")
    else {
        return;
    };
    let store = place.open();
    let load = std::panic::AssertUnwindSafe(|| {
        let input = ImageInput { layers: vec![Box::new(Broken)], ..base().input(&["broken"], false) };
        let _ = store.load_image(input, &Silent);
    });
    assert!(std::panic::catch_unwind(load).is_err());
    store.load_image(Image::simple().input(&["sound"], false), &Silent).unwrap();
    store.gc(false).unwrap();
    assert_nothing_to_collect(&store);
    assert_clean(&store);
}
