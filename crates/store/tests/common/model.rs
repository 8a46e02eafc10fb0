//! Operations at random, and a plain model of what they do.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use vellum_driver::MountOptions;

/// A small generator of random numbers (xorshift), so that a failure can be repeated.
pub struct Dice(pub u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            dice.below(2);
        }
        dice
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What can be asked of a store. Numbers name images, containers, save points and values among few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Load(u8),
    Tag(u8, u8),
    Rmi(u8, bool),
    Create(u8, u8),
    Write(u8, u8),
    Mount(u8),
    Umount(u8),
    Snapshot(u8, u8),
    Rollback(u8, u8),
    Unsave(u8, u8),
    Commit(u8, u8),
    Rm(u8, bool),
    Gc,
    Reopen,
    /// A layer is damaged, found, and mended by loading its image again.
    Mend(u8),
}

pub const KINDS: u64 = 20;

impl Op {
    /// The operation of these numbers, each taken for as much as is there.
    pub fn of(kind: u64, a: u64, b: u64) -> Self {
        let small = |number: u64, limit: u64| u8::try_from(number % limit).unwrap();
        // Few of each, so that one operation meets what another left; and what only shows in a certain order comes more often.
        let (image, name, container, point) = (small(a, 3), small(b, 4), small(a, 2), small(b, 2));
        match kind % KINDS {
            0 => Self::Load(image),
            1 => Self::Tag(small(a, 6), name),
            2 => Self::Rmi(small(a, 10), b.is_multiple_of(2)),
            3 => Self::Create(container, small(b, 10)),
            15 => Self::Create(container, 4 + image),
            4 | 16 => Self::Write(container, small(b, 200)),
            5 => Self::Mount(container),
            6 | 19 => Self::Umount(container),
            7 | 17 => Self::Snapshot(container, point),
            8 | 18 => Self::Rollback(container, point),
            9 => Self::Unsave(container, point),
            10 => Self::Commit(container, point),
            11 => Self::Rm(container, b.is_multiple_of(2)),
            12 => Self::Gc,
            13 => Self::Reopen,
            _ => Self::Mend(image),
        }
    }

    pub fn random(dice: &mut Dice) -> Self {
        Self::of(dice.below(KINDS), dice.below(1 << 20), dice.below(1 << 20))
    }

    pub fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        match numbers[..] {
            [kind, a, b] => Some(Self::of(kind, a, b)),
            _ => None,
        }
    }
}

/// The image that is loaded as number `k`: two layers that are its own, over one that all share.
pub fn image(k: u8) -> Image {
    let own =
        |n: u8| Tar::new().dir("d").file(&format!("d/{k}-{n}"), &vec![k ^ n; 2000 + usize::from(n)]).end();
    let shared = Tar::new().dir("d").file("d/shared", &pattern(5000)).end();
    Image::new(vec![shared, own(k), own(k + 10)])
}

/// Names: those of loads (`i0`…), of tags (`t0`…), of commits (`m0`…), by number.
pub fn name(number: u8) -> String {
    match number {
        0..=3 => format!("t{number}"),
        4..=6 => format!("i{}", number - 4),
        _ => format!("m{}", number - 7),
    }
}

/// Not to be taken for the beginning of an id, which is hexadecimal.
pub fn container_name(number: u8) -> String {
    format!("box{number}")
}

fn point_name(number: u8) -> vellum_types::ContainerName {
    format!("point{number}").parse().unwrap()
}

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Loaded(u8),
    Made(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    image: Key,
    value: Option<u8>,
    mounted: bool,
    points: BTreeMap<u8, Option<u8>>,
}

/// What a store should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    names: BTreeMap<String, Key>,
    /// With the value that containers of it begin with.
    images: BTreeMap<Key, Option<u8>>,
    containers: BTreeMap<u8, Held>,
    made: u32,
    /// The ids of images that containers were made into, as far as they were seen.
    ids: BTreeMap<u32, vellum_types::ImageId>,
}

impl Model {
    /// Remembers what the images are called that only the store knows the ids of.
    pub fn learn(&mut self, store: &Store) {
        for (name, key) in &self.names {
            if let (Key::Made(number), Ok(row)) = (key, store.find_image(name)) {
                self.ids.insert(*number, row.id);
            }
        }
    }

    /// Whether this may be the image of that key.
    fn may_be(&self, key: Key, id: vellum_types::ImageId) -> bool {
        match key {
            Key::Loaded(k) => image(k).id() == id,
            Key::Made(number) => match self.ids.get(&number) {
                Some(known) => *known == id,
                None => (0..3).all(|k| image(k).id() != id) && self.ids.values().all(|known| *known != id),
            },
        }
    }

    fn held(&mut self, container: u8) -> std::result::Result<&mut Held, Code> {
        self.containers.get_mut(&container).ok_or(Code::NotFound)
    }

    /// Does it, or says how it is refused.
    pub fn apply(&mut self, op: Op) -> std::result::Result<(), Code> {
        match op {
            Op::Load(k) => {
                self.images.insert(Key::Loaded(k), None);
                self.names.insert(name(k + 4), Key::Loaded(k));
            }
            Op::Tag(from, to) => {
                let key = *self.names.get(&name(from + 4)).ok_or(Code::NotFound)?;
                self.names.insert(name(to), key);
            }
            Op::Rmi(number, force) => self.rmi(&name(number), force)?,
            Op::Create(container, of) => {
                let key = *self.names.get(&name(of)).ok_or(Code::NotFound)?;
                if self.containers.contains_key(&container) {
                    return Err(Code::Exists);
                }
                let held =
                    Held { image: key, value: self.images[&key], mounted: false, points: BTreeMap::new() };
                self.containers.insert(container, held);
            }
            Op::Write(container, value) => self.held(container)?.value = Some(value),
            Op::Mount(container) => self.held(container)?.mounted = true,
            Op::Umount(container) => self.held(container)?.mounted = false,
            Op::Snapshot(container, point) => {
                let held = self.held(container)?;
                if held.points.contains_key(&point) {
                    return Err(Code::Exists);
                }
                held.points.insert(point, held.value);
            }
            Op::Rollback(container, point) => {
                let held = self.held(container)?;
                if held.mounted {
                    return Err(Code::InUse);
                }
                held.value = *held.points.get(&point).ok_or(Code::NotFound)?;
            }
            Op::Unsave(container, point) => {
                self.held(container)?.points.remove(&point).ok_or(Code::NotFound)?;
            }
            Op::Commit(container, to) => {
                let value = self.held(container)?.value;
                self.made += 1;
                self.images.insert(Key::Made(self.made), value);
                self.names.insert(name(to + 7), Key::Made(self.made));
            }
            Op::Rm(container, force) => {
                if self.held(container)?.mounted && !force {
                    return Err(Code::InUse);
                }
                self.containers.remove(&container);
            }
            Op::Gc | Op::Reopen | Op::Mend(_) => {}
        }
        Ok(())
    }

    fn rmi(&mut self, name: &str, force: bool) -> std::result::Result<(), Code> {
        let key = *self.names.get(name).ok_or(Code::NotFound)?;
        let last = self.names.values().filter(|of| **of == key).count() == 1;
        if last && !force && self.containers.values().any(|held| held.image == key) {
            return Err(Code::InUse);
        }
        self.names.remove(name);
        if last {
            self.images.remove(&key);
        }
        Ok(())
    }

    /// As after everything was unmounted.
    pub fn unmounted(mut self) -> Self {
        self.containers.values_mut().for_each(|held| held.mounted = false);
        self
    }

    /// Compares it with what the store has. What differs, in sentences.
    pub fn compare(&self, store: &Store) -> Vec<String> {
        let mut wrong = Vec::new();
        let images = store.images().unwrap();
        if images.len() != self.images.len() {
            wrong.push(format!("{} images, not {}", images.len(), self.images.len()));
        }
        let mut ids = BTreeMap::new();
        let mut names = BTreeSet::new();
        for row in &images {
            for full in &row.names {
                let name = full.familiar().to_string().trim_end_matches(":latest").to_owned();
                match self.names.get(&name) {
                    None => wrong.push(format!("{name} is there")),
                    Some(key) => {
                        if *ids.entry(*key).or_insert(row.id) != row.id {
                            wrong.push(format!("{name} is another image"));
                        }
                        if !self.may_be(*key, row.id) {
                            wrong.push(format!("{name} is not {key:?}"));
                        }
                    }
                }
                names.insert(name);
            }
        }
        wrong.extend(
            self.names.keys().filter(|name| !names.contains(*name)).map(|name| format!("{name} is lost")),
        );
        let rows = store.containers().unwrap();
        if rows.len() != self.containers.len() {
            wrong.push(format!("{} containers, not {}", rows.len(), self.containers.len()));
        }
        for (number, held) in &self.containers {
            match store.find_container(&container_name(*number)) {
                Err(_) => wrong.push(format!("container {number} is lost")),
                Ok(row) => wrong.extend(self.compare_container(store, *number, held, &row)),
            }
        }
        wrong
    }

    fn compare_container(&self, store: &Store, number: u8, held: &Held, row: &ContainerRow) -> Vec<String> {
        let mut wrong = Vec::new();
        if row.mounted.is_some() != held.mounted {
            wrong.push(format!("container {number} is mounted: {:?}, not {}", row.mounted, held.mounted));
        }
        let value = read_value(store, row);
        if value != held.value {
            wrong.push(format!("container {number} holds {value:?}, not {:?}", held.value));
        }
        let points: Vec<String> =
            store.save_points(&row.id).unwrap().iter().map(|point| point.name.to_string()).collect();
        let mut wanted: Vec<String> = held.points.keys().map(|p| point_name(*p).to_string()).collect();
        wanted.sort();
        let mut there = points;
        there.sort();
        if there != wanted {
            wrong.push(format!("container {number} has the save points {there:?}, not {wanted:?}"));
        }
        wrong
    }
}

fn read_value(store: &Store, row: &ContainerRow) -> Option<u8> {
    let path = store.mount(&row.id, &MountOptions::default()).unwrap();
    assert_eq!(std::fs::read(path.join("d/shared")).unwrap(), pattern(5000));
    let value = std::fs::read_to_string(path.join("value")).ok().map(|text| text.parse().unwrap());
    let _ = store.umount(&row.id, false, false).unwrap();
    value
}

/// Does it for real.
pub fn perform(store: &mut Store, reopen: &dyn Fn() -> Store, driver: &str, op: Op) -> Result<()> {
    let find = |store: &Store, container: u8| store.find_container(&container_name(container));
    match op {
        Op::Load(k) => {
            let _ = store.load_image(image(k).input(&[&name(k + 4)], true), &Silent)?;
        }
        Op::Tag(from, to) => {
            let id = store.find_image(&name(from + 4))?.id;
            store.tag(&id, &name(to).parse().unwrap())?;
        }
        Op::Rmi(number, force) => drop(store.remove_image(&name(number), force)?),
        Op::Create(container, of) => {
            let id = store.find_image(&name(of))?.id;
            let name = Some(container_name(container).parse().unwrap());
            store.create_container(&id, CreateOptions { name, ..CreateOptions::default() })?;
        }
        Op::Write(container, value) => {
            let id = find(store, container)?.id;
            let path = store.mount(&id, &MountOptions::default())?;
            std::fs::write(path.join("value.new"), value.to_string()).unwrap();
            std::fs::rename(path.join("value.new"), path.join("value")).unwrap();
            let _ = store.umount(&id, false, false)?;
        }
        Op::Mount(container) => {
            let row = find(store, container)?;
            if row.mounted.is_none() {
                store.mount(&row.id, &MountOptions::default())?;
            }
        }
        Op::Umount(container) => {
            let id = find(store, container)?.id;
            let _ = store.umount(&id, true, false)?;
        }
        Op::Snapshot(container, point) => {
            let id = find(store, container)?.id;
            store.snapshot(&id, Some(&point_name(point)))?;
        }
        Op::Rollback(container, point) => {
            let id = find(store, container)?.id;
            store.rollback(&id, Some(&point_name(point)))?;
        }
        Op::Unsave(container, point) => {
            let id = find(store, container)?.id;
            store.remove_save_point(&id, &point_name(point))?;
        }
        Op::Commit(container, to) => {
            let id = find(store, container)?.id;
            let name = Some(name(to + 7).parse().unwrap());
            store.commit(&id, &CommitOptions { name, ..CommitOptions::default() })?;
        }
        Op::Rm(container, force) => {
            let id = find(store, container)?.id;
            store.remove_container(&id, force)?;
        }
        Op::Gc => drop(store.gc(false)?),
        Op::Reopen => *store = reopen(),
        Op::Mend(k) => mend(store, driver, k)?,
    }
    Ok(())
}

/// Only where nothing is mounted: a mounted container keeps its layers from being replaced.
fn mend(store: &Store, driver: &str, k: u8) -> Result<()> {
    let there = store.images()?.iter().any(|row| row.id == image(k).id());
    if !there || store.containers()?.iter().any(|row| row.mounted.is_some()) {
        return Ok(());
    }
    let layers = store.image_layers(&image(k).id())?;
    let folder = store.data().join("layers").join(driver).join(layers[1].id.to_string());
    std::fs::write(folder.join("recipe"), b"bad").unwrap();
    assert!(!store.check(false, &Silent)?.is_empty());
    // Without a name, which might be another image's now.
    let report = store.load_image(image(k).input(&[], true), &Silent)?;
    assert_eq!(report.layers_new, 1, "the damaged layer was not mended");
    Ok(())
}
