//! Many processes in one store at once: every answer is a proper one, and nothing leaks.

mod common;

use common::*;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vellum_driver::MountOptions;
use vellum_store::*;

const CHILD: &str = "VELLUM_TEST_MANY";
const PROCESSES: u64 = 16;
const SECONDS: u64 = 5;

/// Answers that others' work may cause. Anything else is a failure.
fn proper(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::InUse | Code::Exists)
}

fn allow<T>(what: &str, result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) if proper(e.code()) => None,
        Err(e) => panic!("{what}: {}", told(&e)),
    }
}

/// A small generator of random numbers (xorshift), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn child_among_many() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let mut parts = text.splitn(3, ':');
    let (seed, driver, dir) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let mut dice = Dice(seed.parse::<u64>().unwrap() * 0x9e37_79b9 + 1);
    let until = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < until {
        // Opened anew each time, as commands do.
        let store = Store::open(&options(Path::new(dir), driver)).unwrap();
        for _ in 0..4 {
            one_operation(&store, &mut dice);
        }
    }
}

fn one_operation(store: &Store, dice: &mut Dice) {
    let number = dice.below(3);
    let image = Image::big(u8::try_from(number).unwrap(), 3, 8);
    let name = format!("image{number}");
    match dice.below(9) {
        0 | 1 => {
            let report = allow("load", store.load_image(image.input(&[&name], false), &Silent));
            assert!(report.is_some_and(|report| report.id == image.id()));
        }
        2 => drop(allow("rmi", store.remove_image(&name, true))),
        3 => drop(allow("gc", store.gc(false)).unwrap()),
        4 => {
            for container in allow("ps", store.containers()).unwrap().into_iter().take(3) {
                allow("rm", store.remove_container(&container.id, dice.below(2) == 0));
            }
        }
        _ => container(store, &image, dice),
    }
}

fn container(store: &Store, image: &Image, dice: &mut Dice) {
    let Some(id) = allow("create", store.create_container(&image.id(), CreateOptions::default())) else {
        return;
    };
    let Some(path) = allow("mount", store.mount(&id, &MountOptions::default())) else { return };
    // Another process may have removed it by force at any moment.
    let _ = std::fs::write(path.join("d/new"), pattern(2000));
    if dice.below(2) == 0 {
        allow("snapshot", store.snapshot(&id, None));
    }
    if dice.below(3) == 0 {
        let name = Some("committed".parse().unwrap());
        allow("commit", store.commit(&id, &CommitOptions { name, ..CommitOptions::default() }));
    }
    allow("umount", store.umount(&id, false, false));
    if dice.below(2) == 0 {
        allow("rollback", store.rollback(&id, None));
    }
    if dice.below(2) == 0 {
        allow("rm", store.remove_container(&id, true));
    }
}

fn crowd(test: &str, driver: &str) {
    let Some(place) = Place::new(test, driver) else { return };
    let dir = place.dir.as_ref().unwrap().path().to_owned();
    drop(place.open());
    let children: Vec<_> = (0..PROCESSES)
        .map(|seed| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_among_many", "--nocapture"])
                .env(CHILD, format!("{}:{driver}:{}", seed + 1, dir.display()))
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let store = place.open();
    let mut slowest = Duration::ZERO;
    let until = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < until {
        let begin = Instant::now();
        store.images().unwrap();
        slowest = slowest.max(begin.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    // Readers do not wait for writers; the bound is wide because the machine is busy.
    assert!(slowest < Duration::from_secs(2), "a reader waited {slowest:?}");
    for container in store.containers().unwrap() {
        store.remove_container(&container.id, true).unwrap();
    }
    assert_clean(&store);
    store.gc(false).unwrap();
    assert_nothing_to_collect(&store);
    for image in store.images().unwrap() {
        store.remove_image(&image.id.to_string(), true).unwrap();
    }
    store.gc(false).unwrap();
    assert_nothing_to_collect(&store);
    assert_eq!(store.usage().unwrap().metadata.count, 0);
    assert_eq!(std::fs::read_dir(store.root().join("layers").join(driver)).unwrap().count(), 0);
    assert_clean(&store);
}

#[test]
fn root_many_processes_share_a_store_on_overlay() {
    crowd("root_many_processes_share_a_store_on_overlay", "overlay");
}

#[test]
fn root_many_processes_share_a_store_on_vfs() {
    crowd("root_many_processes_share_a_store_on_vfs", "vfs");
}
