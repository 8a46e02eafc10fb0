//! SIGKILL at random, over and over: after each the store is sound, nothing that was reported is lost, nothing leaks.
//!
//! A child does operations at random and writes down each before it begins and when it was answered. The parent kills it, follows what
//! was answered in a model, and compares: the operation that was cut short has happened whole or not at all.

mod common;

use common::model::{Dice, Model, Op, perform};
use common::*;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vellum_store::*;

const CHILD: &str = "VELLUM_TEST_KILL";
const LOG: &str = "log";

/// Works until it is killed.
#[test]
fn child_that_is_killed() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let mut parts = text.splitn(3, ':');
    let (seed, driver, dir) =
        (parts.next().unwrap(), parts.next().unwrap(), Path::new(parts.next().unwrap()));
    let mut dice = Dice::new(seed.parse().unwrap());
    let mut log = std::fs::File::options().append(true).create(true).open(dir.join(LOG)).unwrap();
    let reopen = || Store::open(&options(dir, driver)).unwrap();
    let mut store = reopen();
    loop {
        let (kind, a, b) = (dice.below(common::model::KINDS), dice.below(1000), dice.below(1000));
        log.write_all(format!("{kind} {a} {b}").as_bytes()).unwrap();
        let outcome = match perform(&mut store, &reopen, driver, Op::of(kind, a, b)) {
            Ok(()) => "ok",
            Err(e) if matches!(e.code(), Code::NotFound | Code::Exists | Code::InUse) => "refused",
            Err(e) => panic!("{:?}: {}", Op::of(kind, a, b), told(&e)),
        };
        log.write_all(format!("={outcome}\n").as_bytes()).unwrap();
    }
}

/// Follows what was answered, and gives the operation that was not.
fn follow(model: &mut Model, log: &str) -> Option<Op> {
    for line in log.split_inclusive('\n') {
        let Some((text, outcome)) = line.trim_end().split_once('=') else { return Op::parse(line) };
        let op = Op::parse(text).unwrap();
        assert_eq!(model.apply(op).is_ok(), outcome == "ok", "{op:?} was answered with {outcome}");
    }
    None
}

/// After a kill: opened, unmounted, mended, compared, collected.
fn look_after(place: &Place, model: &mut Model, cut_short: Option<Op>) -> Result<Store> {
    let store = Store::open(&place.options())?;
    for row in store.containers()? {
        let _ = store.umount(&row.id, true, false)?;
    }
    // A repair that was cut short may have left what it was to mend; its blobs are kept.
    let findings = store.check(matches!(cut_short, Some(Op::Mend(_))), &Silent)?;
    assert!(findings.iter().all(|finding| finding.repaired.is_some()), "{cut_short:?}: {findings:#?}");
    let before = model.clone().unmounted();
    let mut after = model.clone();
    // Mounted or not, it is unmounted now; but a rollback or removal that was refused for that was refused.
    let done = cut_short.is_some_and(|op| after.apply(op).is_ok());
    let after = after.unmounted();
    let differences = before.compare(&store);
    *model = match differences.is_empty() {
        true => before,
        false => {
            let others = after.compare(&store);
            assert!(
                done && others.is_empty(),
                "cut short: {cut_short:?}\n{differences:#?}\n{others:#?}\n{before:#?}\n{:#?}",
                store.images().unwrap()
            );
            after
        }
    };
    model.learn(&store);
    store.gc(false)?;
    assert_nothing_to_collect(&store);
    assert_clean(&store);
    Ok(store)
}

/// Nothing lies about that no row names.
fn assert_no_leak(store: &Store, place: &Place) {
    let names = |folder: &str| -> Vec<String> {
        std::fs::read_dir(part(store, folder))
            .map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default()
    };
    let known = store.usage().unwrap().metadata.count;
    assert_eq!(names(&format!("layers/{}", place.driver)).len(), known);
    let ids = |name: &&String| name.parse::<vellum_types::LayerId>().is_ok();
    assert_eq!(names(&place.driver).iter().filter(ids).count(), known);
    for folder in ["tmp", "mnt", &format!("trash/{}", place.driver)] {
        assert!(names(folder).is_empty(), "{folder}: {:?}", names(folder));
    }
    let owners: Vec<_> = names("locks").into_iter().filter(|name| name.starts_with("owner")).collect();
    assert!(owners.is_empty(), "{owners:?}");
    let mut mounts = vellum_testkit::scratch::mounts_below(store.root()).unwrap();
    mounts.retain(|mount| mount != store.data());
    assert!(mounts.is_empty(), "{mounts:?}");
}

fn kills(test: &str, driver: &str) {
    let Some(place) = Place::new(test, driver) else { return };
    let dir = place.dir.as_ref().unwrap().path().to_owned();
    let (duration, seed) = campaign(4);
    let mut dice = Dice::new(seed);
    let mut model = Model::default();
    let (mut kills, mut operations) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let _ = std::fs::remove_file(dir.join(LOG));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD, format!("{}:{driver}:{}", dice.below(1 << 40), dir.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(20_000 + dice.below(400_000)));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none(), "the child ended by itself, with seed {seed} after {kills} kills");
        let log = std::fs::read_to_string(dir.join(LOG)).unwrap_or_default();
        operations += log.lines().count();
        let cut_short = follow(&mut model, &log);
        let store = look_after(&place, &mut model, cut_short).unwrap_or_else(|e| panic!("{}", told(&e)));
        assert_no_leak(&store, &place);
        kills += 1;
    }
    report(&format!("kill {driver}: {kills} kills over {operations} operations, seed {seed}"));
}

#[test]
fn root_a_process_killed_at_random_leaves_a_sound_store_on_overlay() {
    kills("root_a_process_killed_at_random_leaves_a_sound_store_on_overlay", "overlay");
}

#[test]
fn root_a_process_killed_at_random_leaves_a_sound_store_on_vfs() {
    kills("root_a_process_killed_at_random_leaves_a_sound_store_on_vfs", "vfs");
}

#[test]
fn root_a_process_killed_at_random_leaves_a_sound_store_on_composefs() {
    kills("root_a_process_killed_at_random_leaves_a_sound_store_on_composefs", "composefs");
}

#[test]
fn root_a_process_killed_at_random_leaves_a_sound_store_on_btrfs() {
    kills("root_a_process_killed_at_random_leaves_a_sound_store_on_btrfs", "btrfs");
}
