//! Bits flip at random places of a store: check names the file or the store refuses to open; nothing panics, nothing is served as sound.

mod common;

use common::model::Dice;
use common::*;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch};

/// Files whose content is nobody's business: locks, the room kept back, the log's index (made anew), what was probed.
fn is_idle(path: &Path) -> bool {
    let text = path.to_string_lossy();
    ["locks/", "reserve", "catalog.db-shm", ".features", "tmp/", "mnt/"]
        .iter()
        .any(|part| text.starts_with(part))
        || text.ends_with(".features")
}

/// Every file with content.
fn files(root: &Path) -> Vec<PathBuf> {
    tree(root)
        .into_iter()
        .map(PathBuf::from)
        .filter(|path| !is_idle(path))
        .filter(|path| root.join(path).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0))
        .collect()
}

fn flip(path: &Path, dice: &mut Dice) -> String {
    let meta = path.symlink_metadata().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let (at, bit) = (usize::try_from(dice.below(bytes.len() as u64)).unwrap(), dice.below(8));
    bytes[at] ^= 1 << bit;
    unlocked(path, || {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], at as u64).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
    });
    format!("bit {bit} of byte {at}")
}

/// A small store with everything in it that a store can have, and its log written into the catalog.
fn furnish(dir: &Path, driver: &str) {
    let store = Store::open(&options(dir, driver)).unwrap();
    store.load_image(Image::simple().input(&["kept"], true), &Silent).unwrap();
    store.load_image(common::model::image(1).input(&["other"], false), &Silent).unwrap();
    let name = Some("user".parse().unwrap());
    let options = CreateOptions { name, ..CreateOptions::default() };
    let id = store.create_container(&Image::simple().id(), options).unwrap();
    let path = store.mount(&id, &vellum_driver::MountOptions::default()).unwrap();
    std::fs::write(path.join("mine"), b"mine").unwrap();
    let _ = store.umount(&id, true, false).unwrap();
    store.snapshot(&id, None).unwrap();
    store.snapshots("ns").prepare("k", None, &Labels::new()).unwrap();
}

/// A sound store, to be damaged anew each time.
struct Sample {
    scratch: Scratch,
    driver: &'static str,
}

impl Sample {
    fn new(test: &str, driver: &'static str) -> Option<Self> {
        let skip = |reason: String| vellum_testkit::skip::record(test, &reason);
        let scratch = Scratch::new(Kind::Tmpfs).map_err(|e| skip(e.to_string())).ok()?;
        let sample = Self { scratch, driver };
        if !sample.is_disk() {
            furnish(&sample.scratch.folder("sound").unwrap(), driver);
            return Some(sample);
        }
        std::fs::File::create(sample.disk("sound")).unwrap().set_len(160 << 20).unwrap();
        let mut mkfs = Command::new("mkfs.btrfs");
        let made = mkfs.arg("-q").arg(sample.disk("sound")).stderr(Stdio::null()).status();
        if !made.is_ok_and(|status| status.success()) {
            skip("mkfs.btrfs is missing".into());
            return None;
        }
        let disk = Disk::mount(&sample.disk("sound"), sample.scratch.path().join("mount"))?;
        furnish(&disk.mount, driver);
        drop(disk);
        Some(sample)
    }

    /// Subvolumes cannot be copied as folders are: the whole file system is.
    fn is_disk(&self) -> bool {
        self.driver == "btrfs"
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.disk"))
    }

    /// Calls `work` with the folder of a copy that has everything that matters: times, attributes, links. Of a file system that copy is
    /// another file each time: a loop device outlives its mount by a moment, and would be used again with what it has read.
    fn with_copy(&self, number: u32, work: impl FnOnce(&Path)) {
        let copy = |from: &Path, to: &Path| {
            let done = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
            assert!(done.success());
        };
        if self.is_disk() {
            let file = self.disk(&number.to_string());
            copy(&self.disk("sound"), &file);
            let disk = Disk::mount(&file, self.scratch.path().join("mount")).unwrap();
            std::fs::remove_file(&file).unwrap();
            return work(&disk.mount);
        }
        let (sound, dir) = (self.scratch.path().join("sound"), self.scratch.folder("d").unwrap());
        let _ = std::fs::remove_dir_all(dir.join("root"));
        copy(&sound.join("root"), &dir.join("root"));
        work(&dir);
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if !self.is_disk() {
            drop(Store::reset(&options(&self.scratch.path().join("sound"), self.driver)));
        }
    }
}

/// A manifest that says the same: compression has bits that mean nothing.
fn lists_the_same(before: &[u8], after: &[u8]) -> bool {
    let read = |bytes: &[u8]| -> Option<Vec<vellum_archive::manifest::Entry>> {
        vellum_archive::manifest::Reader::new(std::io::Cursor::new(bytes.to_vec()))
            .ok()?
            .collect::<std::io::Result<_>>()
            .ok()
    };
    read(before).is_some_and(|entries| read(after) == Some(entries))
}

/// Content that no digest covers: what a container itself wrote.
fn is_containers_own(path: &Path, driver: &str, own: &[vellum_types::LayerId]) -> bool {
    own.iter().any(|id| {
        path.starts_with(format!("{driver}/{id}")) && !path.ends_with("lower") && !path.ends_with("info")
    })
}

/// What only says where to look first: it is not used when it does not agree with itself (a test of damage shows that).
fn is_hint(path: &Path) -> bool {
    path.ends_with("since")
}

/// Of the catalog a check sees what SQLite sees and what differs from the files beside it; numbers and times that
/// are nowhere else may differ without anybody noticing, and pages that hold nothing.
fn tolerated(path: &Path) -> bool {
    path.starts_with("catalog.db") || path.starts_with("catalog.db-wal")
}

/// A moment has more than one spelling: a small t is as good, and a comma before the parts of a second.
fn spell(json: &mut serde_json::Value) {
    let Some(map) = json.as_object_mut() else { return };
    for (key, value) in map {
        match value.as_str() {
            Some(text) if ["created", "added"].contains(&key.as_str()) => {
                *value = text.replace(',', ".").to_uppercase().into();
            }
            _ => spell(value),
        }
    }
}

/// A file whose JSON says the same but for the moment at which its layer was made, which the catalog has from another clock's reading, and how much it is of what
/// moves: what a container wrote, what is counted with another layer when one goes.
fn says_the_same(driver: &str, before: &[u8], after: &[u8]) -> bool {
    let read = |bytes: &[u8]| {
        let mut json: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        let map = json.as_object_mut()?;
        map.remove("created");
        if driver == "composefs" || map.get("role").is_some_and(|role| role != "image") {
            map.remove("usage");
        }
        spell(&mut json);
        Some(json)
    };
    read(before).is_some_and(|json| read(after) == Some(json))
}

struct Flips {
    found: u32,
    refused: u32,
    unseen: u32,
    repaired: u32,
}

fn one(dir: &Path, driver: &str, dice: &mut Dice, flips: &mut Flips) {
    let root = dir.join("root");
    let own: Vec<_> = {
        let store = Store::open(&options(dir, driver)).unwrap();
        let row = store.find_container("user").unwrap();
        let mut own = vec![row.layer, store.snapshots("ns").stat("k").unwrap().layer];
        own.extend(store.save_points(&row.id).unwrap().iter().map(|point| point.layer));
        own
    };
    // Each folder as likely as another: there are many more files in layers than elsewhere.
    let all = files(&root);
    let tops: std::collections::BTreeSet<_> = all.iter().filter_map(|p| p.iter().next()).collect();
    let top = tops.iter().nth(usize::try_from(dice.below(tops.len() as u64)).unwrap()).unwrap();
    let among: Vec<_> = all.iter().filter(|p| p.starts_with(top)).collect();
    let path = among[usize::try_from(dice.below(among.len() as u64)).unwrap()];
    let before = std::fs::read(root.join(path)).unwrap();
    let what = format!("{driver}: {} of {}", flip(&root.join(path), dice), path.display());
    let checked = std::panic::catch_unwind(|| Store::check_at(&options(dir, driver), false, &Silent))
        .unwrap_or_else(|_| panic!("{what}: it panicked"));
    match checked {
        Ok(findings) if findings.is_empty() => {
            // A record beside the catalog that is merely behind is written anew without a word.
            let now = std::fs::read(root.join(path)).unwrap_or_default();
            let nobody_cares = is_containers_own(path, driver, &own)
                || is_hint(path)
                || tolerated(path)
                || lists_the_same(&before, &now);
            assert!(
                nobody_cares || now == before || says_the_same(driver, &before, &now),
                "{what}: nothing is found"
            );
            flips.unseen += 1;
            return;
        }
        Ok(findings) => {
            flips.found += 1;
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let named = findings.iter().any(|f| {
                let hay = format!("{} {} {}", f.object, f.path.as_deref().unwrap_or(""), f.detail);
                hay.contains(&name) || hay.contains(name.trim_end_matches(".json")) || hay.contains("catalog")
            });
            // The driver's own record of a layer is named by the layer.
            let by_layer = path.iter().nth(1).is_some_and(|id| {
                findings.iter().any(|f| f.object.contains(&format!("layer {}", id.to_string_lossy())))
            });
            // An object is named by the files that have its content.
            let by_file = path.iter().nth(1).is_some_and(|part| part == "objects")
                && findings.iter().any(|finding| finding.id == "VLM-L004" && finding.path.is_some());
            assert!(named || by_layer || by_file || tolerated(path), "{what}: not named by {findings:#?}");
        }
        Err(e) => {
            assert!(
                matches!(e.code(), Code::Damaged | Code::Invalid | Code::Unsupported),
                "{what}: {}",
                told(&e)
            );
            flips.refused += 1;
        }
    }
    // What can be mended is, and what cannot is still told: no repair makes anything worse or panics.
    let repaired = std::panic::catch_unwind(|| Store::check_at(&options(dir, driver), true, &Silent))
        .unwrap_or_else(|_| panic!("{what}: repair panicked"));
    let left = repaired.map_or(1, |findings| findings.iter().filter(|f| f.repaired.is_none()).count());
    if left == 0 {
        let store = Store::open(&options(dir, driver)).unwrap_or_else(|e| panic!("{what}: {}", told(&e)));
        let findings = store.check(false, &Silent).unwrap();
        assert!(findings.is_empty(), "{what}: after the repair {findings:#?}");
        flips.repaired += 1;
        return;
    }
    // Loading the images again mends layers and configurations, unless the store cannot be opened at all.
    let Ok(store) = Store::open(&options(dir, driver)) else { return };
    let load = |image: &Image, name: &str| store.load_image(image.input(&[name], true), &Silent);
    if load(&Image::simple(), "kept").is_ok() && load(&common::model::image(1), "other").is_ok() {
        let findings = store.check(true, &Silent).unwrap();
        if findings.iter().all(|f| f.repaired.is_some()) {
            assert_clean(&store);
            flips.repaired += 1;
        }
    }
}

fn flips(test: &str, driver: &'static str) {
    let Some(sample) = Sample::new(test, driver) else { return };
    let (duration, seed) = campaign(5);
    let mut dice = Dice::new(seed);
    let mut flips = Flips { found: 0, refused: 0, unseen: 0, repaired: 0 };
    let begin = Instant::now();
    let mut number = 0;
    while begin.elapsed() < duration {
        sample.with_copy(number, |dir| one(dir, driver, &mut dice, &mut flips));
        number += 1;
    }
    let Flips { found, refused, unseen, repaired } = flips;
    report(&format!(
        "flips {driver}: {number} bits, {found} found by check, {refused} refused at opening, {unseen} where nothing \
         is recorded; {repaired} repaired; seed {seed}"
    ));
}

#[test]
fn root_flipped_bits_are_found_on_overlay() {
    flips("root_flipped_bits_are_found_on_overlay", "overlay");
}

#[test]
fn root_flipped_bits_are_found_on_vfs() {
    flips("root_flipped_bits_are_found_on_vfs", "vfs");
}

#[test]
fn root_flipped_bits_are_found_on_btrfs() {
    flips("root_flipped_bits_are_found_on_btrfs", "btrfs");
}

#[test]
fn root_flipped_bits_are_found_on_composefs() {
    flips("root_flipped_bits_are_found_on_composefs", "composefs");
}

#[test]
fn root_a_flipped_bit_of_the_identity_is_found_wherever_it_is() {
    let test = "root_a_flipped_bit_of_the_identity_is_found_wherever_it_is";
    let Some(place) = Place::new(test, "overlay") else { return };
    drop(place.open());
    let path = place.root().join("store.json");
    let sound = std::fs::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let checked = Store::check_at(&place.options(), false, &Silent);
        let same = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        assert!(
            checked.is_err() || !checked.unwrap().is_empty() || same(&bytes) == same(&sound),
            "nothing is found: {}",
            String::from_utf8_lossy(&bytes)
        );
    }
}
