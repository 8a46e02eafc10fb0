//! Two loads at once that have a file in common, one of which is killed, and a collection meanwhile: the other one's file stays, and is its own.

mod common;

use common::*;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vellum_driver::MountOptions;
use vellum_store::*;

const CHILD: &str = "VELLUM_TEST_SHARED";

fn shared() -> Vec<u8> {
    pattern(3 << 20)
}

/// An image of one layer: the shared file, and one of its own.
fn image(own: &str) -> Image {
    let tar = Tar::new().file("shared", &shared()).file("after", &[1; 100_000]);
    Image::new(vec![tar.file(own, &pattern(200_000)).end()])
}

fn wait_for(path: &Path) {
    let until = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < until, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A layer that comes up to the middle of its second file, says so by a file, and goes on when another is there.
struct Halting {
    tar: Vec<u8>,
    here: PathBuf,
    go_on: PathBuf,
}

impl LayerSource for Halting {
    fn open(&self) -> std::io::Result<Box<dyn Read + Send>> {
        let middle = shared().len() + 50_000;
        let (begin, end) = (self.tar[..middle].to_vec(), self.tar[middle..].to_vec());
        let gate = Gate { here: self.here.clone(), go_on: self.go_on.clone() };
        Ok(Box::new(Cursor::new(begin).chain(gate).chain(Cursor::new(end))))
    }
}

/// Has no bytes; is read when all before it was.
struct Gate {
    here: PathBuf,
    go_on: PathBuf,
}

impl Read for Gate {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        std::fs::write(&self.here, "")?;
        wait_for(&self.go_on);
        Ok(0)
    }
}

fn halting(own: &str, dir: &Path) -> ImageInput<'static> {
    let image = image(own);
    let source = Halting {
        tar: image.tars[0].clone(),
        here: dir.join(format!("{own}-here")),
        go_on: dir.join(format!("{own}-go-on")),
    };
    ImageInput { layers: vec![Box::new(source)], ..image.input(&[own], false) }
}

/// Begins to load, and is killed.
#[test]
fn child_that_loads() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let (driver, dir) = text.split_once(':').unwrap();
    let store = Store::open(&options(Path::new(dir), driver)).unwrap();
    let _ = store.load_image(halting("killed", Path::new(dir)), &Silent);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => files_below(&entry.path()),
        false => 1,
    };
    entries.map(count).sum()
}

/// The layers that the driver has folders of.
fn layers(place: &Place, driver: &str) -> Vec<std::ffi::OsString> {
    let entries =
        std::fs::read_dir(place.data().join(driver)).unwrap().map(|entry| entry.unwrap().file_name());
    let own = |name: &std::ffi::OsString| {
        name.to_str().is_some_and(|name| name != "L" && name.parse::<vellum_types::LayerId>().is_ok())
    };
    entries.filter(own).collect()
}

fn assert_shared_is_whole(store: &Store, own: &str) {
    let container = store.create_container(&image(own).id(), CreateOptions::default()).unwrap();
    let root = store.mount(&container, &MountOptions::default()).unwrap();
    assert!(std::fs::read(root.join("shared")).unwrap() == shared(), "{own}: another content");
    store.umount(&container, true, false).unwrap();
    store.remove_container(&container, true).unwrap();
}

#[test]
fn root_what_a_killed_load_shared_with_another_stays() {
    let test = "root_what_a_killed_load_shared_with_another_stays";
    for driver in DRIVERS {
        let Some(place) = Place::new(test, driver) else { continue };
        let dir = place.dir.as_ref().unwrap().path().to_owned();
        let store = place.open();
        let mut killed = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_loads"])
                .env(CHILD, format!("{driver}:{}", dir.display()))
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        wait_for(&dir.join("killed-here"));
        std::thread::scope(|scope| {
            let load = scope.spawn(|| store.load_image(halting("kept", &dir), &Silent).unwrap());
            wait_for(&dir.join("kept-here"));
            killed.0.kill().unwrap();
            killed.0.wait().unwrap();
            // What the killed one had made goes; what the other has taken of it does not.
            let before = layers(&place, driver);
            let collected = store.gc(false);
            let after = layers(&place, driver);
            std::fs::write(dir.join("kept-go-on"), "").unwrap();
            load.join().unwrap();
            collected.unwrap();
            assert_eq!((before.len(), after.len()), (2, 1), "{driver}: {before:?}, {after:?}");
        });
        store.gc(false).unwrap();
        assert_nothing_to_collect(&store);
        assert_clean(&store);
        assert_shared_is_whole(&store, "kept");
        // The same the other way round: the first goes, and the one that came later needs what it had.
        store.load_image(image("killed").input(&["killed"], false), &Silent).unwrap();
        store.remove_image("kept", false).unwrap();
        store.gc(false).unwrap();
        assert_clean(&store);
        assert_shared_is_whole(&store, "killed");
        store.remove_image("killed", false).unwrap();
        store.gc(false).unwrap();
        assert_nothing_to_collect(&store);
        assert_eq!(files_below(&place.data().join(driver).join("objects")), 0, "{driver}: objects of nobody");
    }
}
