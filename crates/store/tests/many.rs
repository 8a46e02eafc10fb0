//! Many processes in one store at once: every answer is a proper one, and nothing leaks.

mod common;

use common::model::Dice;
use common::*;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vellum_driver::MountOptions;
use vellum_store::*;

const CHILD: &str = "VELLUM_TEST_MANY";
const PROCESSES: u64 = 16;
/// How many of them there are in a long run.
const CROWD: u64 = 64;

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

#[test]
fn child_among_many() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let mut parts = text.splitn(3, ':');
    let (seed, driver, dir) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let (duration, base) = campaign(5);
    let mut dice = Dice::new(base * 1000 + seed.parse::<u64>().unwrap());
    let until = Instant::now() + duration;
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
    match dice.below(10) {
        0 | 1 => {
            let report = allow("load", store.load_image(image.input(&[&name], false), &Silent));
            assert!(report.is_some_and(|report| report.id == image.id()));
        }
        2 => drop(allow("rmi", store.remove_image(&name, true))),
        3 => drop(allow("gc", store.gc(false)).unwrap()),
        // What others change meanwhile is no finding.
        9 => {
            let findings = allow("check", store.check(false, &Silent)).unwrap();
            assert!(findings.is_empty(), "{findings:#?}");
        }
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
    let (duration, seed) = campaign(5);
    let processes = if duration.as_secs() >= 60 { CROWD } else { PROCESSES };
    let children: Vec<_> = (0..processes)
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
    let mut waited = Vec::new();
    let until = Instant::now() + duration;
    std::thread::scope(|scope| {
        // A large load all the time, by a process of which others only see the locks.
        scope.spawn(|| {
            let (store, image) = (place.open(), Image::big(200, 3, 400));
            while Instant::now() < until {
                store.load_image(image.input(&["large"], false), &Silent).unwrap();
                allow("rmi large", store.remove_image("large", true));
            }
        });
        while Instant::now() < until {
            let begin = Instant::now();
            store.images().unwrap();
            store.containers().unwrap();
            waited.push(begin.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    waited.sort_unstable();
    report(&format!(
        "many {driver}: {processes} processes for {duration:?}, seed {seed}; images and ps took {:?} in the middle and {:?} at most",
        waited[waited.len() / 2],
        waited[waited.len() - 1]
    ));
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
    assert_eq!(std::fs::read_dir(store.data().join("layers").join(driver)).unwrap().count(), 0);
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

#[test]
fn root_many_processes_share_a_store_on_composefs() {
    crowd("root_many_processes_share_a_store_on_composefs", "composefs");
}

#[test]
fn root_many_processes_share_a_store_on_btrfs() {
    crowd("root_many_processes_share_a_store_on_btrfs", "btrfs");
}
