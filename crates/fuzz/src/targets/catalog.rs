//! A store whose files were damaged.
//!
//! A store with an image of two layers (their blobs kept) and a container is made once, and copied for each run. Then bytes of its
//! files are changed, files are cut, removed, replaced by links that lead out. Opening, reading, checking and repairing it may
//! fail, but never panic, never touch what lies outside, and never give out a layer that is not the layer.

use crate::choices::Choices;
use crate::jail::{Jail, jailed, open};
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use vellum_archive::tree::{self, CopyOptions};
use vellum_oci::Archive;
use vellum_store::{CreateOptions, Floor, ImageInput, LayerSource, OpenOptions, Silent, Store};
use vellum_testkit::tree::Tree;
use vellum_types::{DiffId, Digest};

const DRIVERS: [&str; 2] = ["overlay", "vfs"];

/// A store to copy, and the files in it that can be damaged, sorted.
struct Template {
    _folder: tempfile::TempDir,
    root: PathBuf,
    files: Vec<PathBuf>,
}

thread_local! {
    static TEMPLATES: [Option<Template>; 2] = DRIVERS.map(template);
}

fn options(folder: &Path, driver: &str) -> OpenOptions {
    OpenOptions {
        runtime: Some(folder.join("run")),
        driver: Some(driver.to_owned()),
        floor: Floor::NONE,
        workers: Some(1),
        ..OpenOptions::new(folder.join("root"))
    }
}

/// `None` where the driver does not work.
fn template(driver: &str) -> Option<Template> {
    let folder = tempfile::Builder::new().prefix("vellum-fuzz-").tempdir().expect("a temporary folder");
    let layout = folder.path().join("layout");
    let base = Tree::new().dir("etc", 0o755).file("etc/a", "first", 0o644).symlink("etc/l", "a");
    let top = Tree::new().dir("usr", 0o755).file("usr/x", vec![7; 3000], 0o755).hard_link("usr/y", "usr/x");
    vellum_testkit::image::write_layout(&layout, [base, top]).expect("an image");
    let store = Store::open(&options(folder.path(), driver)).ok()?;
    let archive = Archive::open(&layout, folder.path()).expect("an archive");
    for image in archive.images(None).expect("an image") {
        let layers = image.layers.into_iter().map(|layer| Box::new(layer) as Box<dyn LayerSource>).collect();
        let input = ImageInput {
            config: image.config,
            layers,
            names: vec!["x:1".parse().expect("a name")],
            manifest: image.manifest,
            keep_blobs: true,
        };
        let report = store.load_image(input, &Silent).expect("a good image");
        let named = CreateOptions { name: Some("c".parse().expect("a name")), ..CreateOptions::default() };
        store.create_container(&report.id, named).expect("a container");
    }
    drop(store);
    let root = folder.path().join("root");
    let mut files = Vec::new();
    list(&root, &root, &mut files);
    files.sort();
    Some(Template { _folder: folder, root, files })
}

/// The files of a store; the one that only reserves room is nothing to damage.
fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the store") {
        let path = entry.expect("an entry").path();
        let facts = path.symlink_metadata().expect("an entry");
        if facts.is_dir() {
            list(root, &path, files);
        } else if facts.is_file() && !path.ends_with("reserve") {
            files.push(path.strip_prefix(root).expect("below the root").to_owned());
        }
    }
}

/// One change to one file.
fn damage(jail: &Jail, root: &Path, files: &[PathBuf], choices: &mut Choices<'_>) {
    // Half of all damage is done to the catalog: it has most to go wrong.
    let pick = usize::from(choices.byte());
    let name = if pick >= 128 { Path::new("catalog.db") } else { &files[pick % files.len()] };
    let path = root.join(name);
    let (kind, at, value) = (choices.byte() % 16, choices.number(), choices.byte());
    let length = fs::symlink_metadata(&path).map_or(0, |facts| facts.len());
    // Pages of the catalog are all alike at their beginning: it is where most is decided.
    let at = if value & 1 == 1 { u64::from(at) * 7 } else { u64::from(at) % 128 + u64::from(at >> 7) * 512 };
    let at = at % length.max(1);
    // Not through a link that an earlier change has put there.
    let plain = fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_file());
    if !plain {
        return;
    }
    let file = || fs::File::options().write(true).open(&path);
    let _ = match kind {
        0..=6 => file().and_then(|file| file.write_all_at(&[value], at)),
        7 | 8 => file().and_then(|file| file.write_all_at(choices.bytes(usize::from(value % 32)), at)),
        9 => file().and_then(|file| file.write_all_at(&[0; 64], at)),
        10 => file().and_then(|file| file.write_all_at(&[0xff; 8], at)),
        11 => file().and_then(|file| file.set_len(at)),
        12 => fs::write(&path, choices.bytes(usize::from(value))),
        13 => fs::remove_file(&path),
        14 => fs::remove_file(&path)
            .and_then(|()| std::os::unix::fs::symlink(jail.canary().join("victim"), &path)),
        _ => fs::remove_file(&path).and_then(|()| fs::create_dir(&path)),
    };
}

/// Reads all that there is to read.
fn look(store: &Store) {
    let _ = store.containers();
    let _ = store.info();
    let _ = store.gc(true);
    for image in store.images().unwrap_or_default() {
        let _ = store.image_config(&image.id);
        let _ = store.image_manifest(&image.id);
        for layer in store.image_layers(&image.id).unwrap_or_default() {
            let _ = store.layer_blob(layer.id);
            let mut out = Vec::new();
            if store.layer_tar(layer.id, &mut out).is_ok() {
                assert_eq!(
                    DiffId::from(Digest::sha256(&out)),
                    layer.diff_id,
                    "another layer than the one asked for"
                );
            }
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let flags = choices.byte();
    let driver = usize::from(flags & 1);
    TEMPLATES.with(|templates| {
        let Some(template) = &templates[driver] else { return };
        jailed(|jail| {
            let root = jail.folder("root");
            tree::copy(open(&template.root).as_fd(), open(&root).as_fd(), CopyOptions::default())
                .expect("the template can be copied");
            for _ in 0..=flags >> 1 & 7 {
                damage(jail, &root, &template.files, &mut choices);
            }
            let options = options(&jail.path(""), DRIVERS[driver]);
            if flags & 0x10 != 0
                && let Ok(store) = Store::open(&options)
            {
                look(&store);
            }
            if flags & 0x20 != 0 {
                let _ = Store::check_at(&options, false, &Silent);
            }
            let repaired = Store::check_at(&options, true, &Silent);
            if let Ok(store) = Store::open(&options) {
                look(&store);
                if repaired.is_ok() {
                    // What was repaired can be worked with.
                    store.check(false, &Silent).expect("a store that was repaired can be checked");
                }
            }
        });
    });
}
