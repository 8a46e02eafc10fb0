//! Power cuts: what was reported as done is there and verifies, whenever the power goes.
//!
//! The store works on a file system in a loop file, which lies on a file system with reflink. Cloning the loop file is an atomic cut: what the
//! store's file system has not written yet is lost, as when the power goes.

mod common;

use common::model::Dice;
use common::*;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vellum_driver::MountOptions;
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch};

const CHILD: &str = "VELLUM_TEST_POWER";
/// Of one run of the child.
const CUTS: u32 = 12;

/// Where and how the store works that the power is taken from.
#[derive(Debug, Clone, Copy)]
struct Setup {
    mkfs: &'static str,
    mib: u64,
    driver: &'static str,
    pool: Option<PoolFs>,
}

impl Setup {
    fn on(mkfs: &'static str) -> Self {
        Self { mkfs, mib: 700, driver: "overlay", pool: None }
    }
}

/// Of the snapshots that a front end's client makes, it keeps one of so many.
const KEPT: u32 = 16;

/// A front end with several clients at once, and what it does behind their requests.
fn front_end(store: &Arc<Store>, log: &Path) {
    // It lives as long as the process.
    std::mem::forget(Keeper::start(Arc::clone(store)).unwrap());
    for client in 0..3 {
        let store = Arc::clone(store);
        let mut log = std::fs::File::options().append(true).create(true).open(log).unwrap();
        std::thread::spawn(move || {
            let snapshots = store.snapshots("test");
            for round in 0u32.. {
                let name = format!("front-{client}-{round}");
                snapshots.prepare(&name, None, &Labels::new()).unwrap();
                log.write_all(format!("+{name}\n").as_bytes()).unwrap();
                if round % KEPT != 0 {
                    snapshots.remove(&name).unwrap();
                    log.write_all(format!("-{name}\n").as_bytes()).unwrap();
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
    }
}

/// Loads, creates, writes, saves, commits and removes, and notes after each what was reported.
#[test]
fn child_under_power() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let mut parts = text.splitn(3, ':');
    let (driver, dir, path) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let mut log = std::fs::File::options().append(true).create(true).open(path).unwrap();
    let mut note = |what: String| log.write_all(format!("{what}\n").as_bytes()).unwrap();
    let store = Arc::new(Store::open(&options(Path::new(dir), driver)).unwrap());
    front_end(&store, Path::new(path));
    for round in 0u8..=255 {
        let image = Image::big(round, 3, 40);
        store.load_image(image.input(&[&format!("image{round}")], false), &Silent).unwrap();
        note(format!("+image{round}"));
        // Not to be taken for the beginning of an id, which is hexadecimal.
        let name = format!("box{round}");
        let options = CreateOptions { name: Some(name.parse().unwrap()), ..CreateOptions::default() };
        let id = store.create_container(&image.id(), options).unwrap();
        note(format!("+{name}"));
        let path = store.mount(&id, &MountOptions::default()).unwrap();
        std::fs::write(path.join("new"), [round; 3000]).unwrap();
        let _ = store.umount(&id, true, false).unwrap();
        store.snapshot(&id, None).unwrap();
        note(format!("s{name}"));
        let made = Some(format!("made{round}").parse().unwrap());
        store.commit(&id, &CommitOptions { name: made, ..CommitOptions::default() }).unwrap();
        note(format!("+made{round}"));
        store.rollback(&id, None).unwrap();
        if round % 2 == 0 {
            store.remove_container(&id, false).unwrap();
            note(format!("-{name}"));
            store.remove_image(&format!("image{round}"), false).unwrap();
            note(format!("-image{round}"));
        }
    }
}

fn look_after(dir: &Path, driver: &str, log: &str) {
    let lines: BTreeSet<&str> = log.lines().collect();
    let store = match Store::open(&OpenOptions { create: false, ..options(dir, driver) }) {
        Ok(store) => store,
        Err(e) if e.code() == Code::NotFound && lines.is_empty() => return,
        Err(e) => panic!("{}", told(&e)),
    };
    assert_clean(&store);
    for line in &lines {
        let (sign, name) = line.split_at(1);
        if let Some(number) = name.strip_prefix("front-") {
            let there = store.snapshots("test").stat(name).is_ok();
            let stays = number.rsplit('-').next().unwrap().parse::<u32>().unwrap() % KEPT == 0;
            assert!(sign != "-" || !there, "{name} is back");
            assert!(there || !stays, "{name} is lost");
            continue;
        }
        let container = name.starts_with("box");
        let there = match (sign, container) {
            ("s", _) => {
                let gone = lines.contains(&*format!("-{name}"));
                let row = store.find_container(name);
                // It may be on its way out without having been reported as gone.
                assert!(
                    gone || row.map_or(true, |row| row.save_points == 1),
                    "the save point of {name} is lost"
                );
                continue;
            }
            (_, true) => store.find_container(name).is_ok(),
            (_, false) => store.find_image(name).is_ok(),
        };
        // What is removed next may be gone before it is reported.
        let leaving = !name.starts_with("made")
            && name.trim_start_matches(char::is_alphabetic).parse::<u32>().unwrap() % 2 == 0;
        match sign {
            "+" => assert!(there || leaving, "{name} is lost"),
            _ => assert!(!there, "{name} is back"),
        }
    }
    for container in store.containers().unwrap() {
        if container.save_points == 1 {
            let path = store.mount(&container.id, &MountOptions::default()).unwrap();
            let _ = std::fs::read_dir(&path).unwrap().count();
            let _ = store.umount(&container.id, true, false).unwrap();
        }
    }
    store.gc(false).unwrap();
    assert_nothing_to_collect(&store);
    assert_clean(&store);
    store.load_image(Image::simple().input(&["after"], false), &Silent).unwrap();
    assert_clean(&store);
}

fn cut(test: &str, setup: Setup) {
    let (duration, seed) = campaign(0);
    let mut dice = Dice::new(seed);
    let begin = Instant::now();
    let mut cuts = 0;
    loop {
        cuts += cut_once(test, setup, &mut dice);
        if cuts == 0 || begin.elapsed() >= duration {
            return report(&format!("power {setup:?}: {cuts} cuts, seed {seed}"));
        }
    }
}

/// How often the power went, at moments that the dice say; 0 where that cannot be tried.
fn cut_once(test: &str, setup: Setup, dice: &mut Dice) -> u32 {
    let host = match Scratch::sized(Kind::Btrfs, 6000) {
        Ok(host) => host,
        Err(e) => {
            vellum_testkit::skip::record(test, &e.to_string());
            return 0;
        }
    };
    let image = host.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(setup.mib << 20).unwrap();
    let mut mkfs = Command::new(setup.mkfs);
    let made = mkfs.arg("-q").arg(&image).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        vellum_testkit::skip::record(test, &format!("{} is missing", setup.mkfs));
        return 0;
    }
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&image, place.path().join("disk")).unwrap();
    if let Some(fs) = setup.pool
        && let Err(e) = Store::pool_create(&options(&disk.mount, "overlay"), &common::pools::spec(fs, 600))
    {
        vellum_testkit::skip::record(test, &told(&e));
        return 0;
    }
    let log = place.path().join("log");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_under_power", "--nocapture"])
        .env(CHILD, format!("{}:{}:{}", setup.driver, disk.mount.display(), log.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let mut cuts = Vec::new();
    for number in 0..CUTS {
        std::thread::sleep(Duration::from_micros(60_000 + dice.below(180_000)));
        // The log first: what it says was reported before the cut.
        let reported = std::fs::read_to_string(&log).unwrap_or_default();
        let clone = host.path().join(format!("cut{number}"));
        let to = std::fs::File::create(&clone).unwrap();
        rustix::fs::ioctl_ficlone(&to, std::fs::File::open(&image).unwrap()).unwrap();
        cuts.push((clone, reported));
    }
    // On a busy machine it takes longer until something was done that can be compared.
    let others = |log: &str| log.lines().filter(|line| !line.contains("front")).count();
    while others(&std::fs::read_to_string(&log).unwrap_or_default()) <= 10 {
        assert!(begin.elapsed() < Duration::from_secs(120), "the machine is too slow for this test");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(child.try_wait().unwrap().is_none(), "the child ended after {:?}", begin.elapsed());
    child.kill().unwrap();
    child.wait().unwrap();
    for (number, (clone, reported)) in cuts.iter().enumerate() {
        let cut = Disk::mount(clone, place.path().join(format!("cut{number}"))).unwrap();
        look_after(&cut.mount, setup.driver, reported);
    }
    let last = std::fs::read_to_string(&log).unwrap();
    look_after(&disk.mount, setup.driver, &last);
    CUTS
}

#[test]
fn loop_a_power_cut_at_any_moment_loses_nothing_reported_on_ext4() {
    cut("loop_a_power_cut_at_any_moment_loses_nothing_reported_on_ext4", Setup::on("mkfs.ext4"));
}

#[test]
fn loop_a_power_cut_at_any_moment_loses_nothing_reported_on_xfs() {
    cut("loop_a_power_cut_at_any_moment_loses_nothing_reported_on_xfs", Setup::on("mkfs.xfs"));
}

#[test]
fn loop_a_power_cut_at_any_moment_loses_nothing_reported_on_btrfs() {
    cut("loop_a_power_cut_at_any_moment_loses_nothing_reported_on_btrfs", Setup::on("mkfs.btrfs"));
}

/// Takes the power right after each answer.
#[test]
fn loop_a_power_cut_right_after_an_answer_loses_nothing_in_a_pool() {
    let test = "loop_a_power_cut_right_after_an_answer_loses_nothing_in_a_pool";
    let host = match Scratch::sized(Kind::Btrfs, 4000) {
        Ok(host) => host,
        Err(e) => return vellum_testkit::skip::record(test, &e.to_string()),
    };
    let disk_file = host.path().join("disk");
    std::fs::File::create(&disk_file).unwrap().set_len(900 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk_file).status().unwrap();
    assert!(made.success());
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&disk_file, place.path().join("disk")).unwrap();
    let settings = options(&disk.mount, "overlay");
    // The kernel takes no two file systems of btrfs that say they are the same one, as clones do.
    if let Err(e) = Store::pool_create(&settings, &common::pools::spec(PoolFs::Xfs, 600)) {
        return vellum_testkit::skip::record(test, &told(&e));
    }
    let store = Store::open(&settings).unwrap();
    let mut number = 0;
    let mut cut = |answered: &str| {
        number += 1;
        let clone = host.path().join(format!("cut{number}"));
        let to = std::fs::File::create(&clone).unwrap();
        rustix::fs::ioctl_ficlone(&to, std::fs::File::open(&disk_file).unwrap()).unwrap();
        let cut = Disk::mount(&clone, place.path().join(format!("cut{number}"))).unwrap();
        look_after(&cut.mount, "overlay", answered);
    };
    let image = Image::big(1, 3, 40);
    store.load_image(image.input(&["image1"], false), &Silent).unwrap();
    cut("+image1");
    let named = CreateOptions { name: Some("box1".parse().unwrap()), ..CreateOptions::default() };
    let id = store.create_container(&image.id(), named).unwrap();
    cut("+image1\n+box1");
    let path = store.mount(&id, &MountOptions::default()).unwrap();
    std::fs::write(path.join("new"), [1; 3000]).unwrap();
    let _ = store.umount(&id, true, false).unwrap();
    store.snapshot(&id, None).unwrap();
    cut("+image1\n+box1\nsbox1");
    let made = Some("made1".parse().unwrap());
    store.commit(&id, &CommitOptions { name: made, ..CommitOptions::default() }).unwrap();
    cut("+image1\n+box1\nsbox1\n+made1");
}

#[test]
fn loop_a_power_cut_at_any_moment_loses_nothing_reported_in_a_pool() {
    // Takes as long as three others; campaigns run it.
    if std::env::var_os("VELLUM_CAMPAIGN_SECONDS").is_some() {
        let test = "loop_a_power_cut_at_any_moment_loses_nothing_reported_in_a_pool";
        cut(test, Setup { mib: 900, pool: Some(PoolFs::Xfs), ..Setup::on("mkfs.ext4") });
    }
}

#[test]
fn loop_a_power_cut_at_any_moment_loses_nothing_reported_by_the_driver_btrfs() {
    let test = "loop_a_power_cut_at_any_moment_loses_nothing_reported_by_the_driver_btrfs";
    cut(test, Setup { driver: "btrfs", ..Setup::on("mkfs.btrfs") });
}

#[test]
fn loop_a_power_cut_at_any_moment_loses_nothing_reported_by_the_driver_composefs() {
    let test = "loop_a_power_cut_at_any_moment_loses_nothing_reported_by_the_driver_composefs";
    cut(test, Setup { driver: "composefs", ..Setup::on("mkfs.xfs") });
}
