//! Docker's layers: sealed, filled, given back bit for bit, looked after.

mod common;

use common::*;
use std::os::unix::fs::PermissionsExt as _;
use vellum_driver::Change;
use vellum_store::*;

fn on_each(test: &str, work: impl Fn(&Place, &Store)) {
    for driver in DRIVERS {
        let Some(place) = Place::new(test, driver) else { continue };
        let store = place.open();
        work(&place, &store);
        for row in store.snapshots("docker").walk().unwrap().iter().rev() {
            store.graph("docker").remove(&row.key).ok();
        }
    }
}

/// An image of docker's: its layers, the base first.
fn filled(graph: &Graph<'_>, tars: &[Vec<u8>]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for (number, tar) in tars.iter().enumerate() {
        let id = format!("layer{number}");
        let parent = ids.last().map(String::as_str);
        graph.create(&id, parent, &[]).unwrap();
        graph.apply(&id, parent, &mut &tar[..]).unwrap();
        ids.push(id);
    }
    ids
}

fn diff(graph: &Graph<'_>, id: &str, parent: Option<&str>) -> Vec<u8> {
    let mut tar = Vec::new();
    graph.diff(id, parent, &mut tar).unwrap();
    tar
}

/// Takes every layer away, children first, and looks whether anything is left.
fn assert_goes_without_a_trace(place: &Place, store: &Store) {
    let graph = store.graph("docker");
    let mut rows = store.snapshots("docker").walk().unwrap();
    while !rows.is_empty() {
        let before = rows.len();
        rows.retain(|row| graph.remove(&row.key).is_err());
        assert!(rows.len() < before, "{rows:#?}");
    }
    store.gc(false).unwrap();
    assert_nothing_to_collect(store);
    assert_clean(store);
    for folder in [format!("layers/{}", place.driver), "mnt".into(), format!("trash/{}", place.driver)] {
        let left = tree(&part(store, &folder));
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
}

#[test]
fn root_layers_come_back_bit_for_bit_and_containers_lie_on_them() {
    on_each("root_layers_come_back_bit_for_bit_and_containers_lie_on_them", |place, store| {
        let graph = store.graph("docker");
        let tars = Image::simple().tars;
        let ids = filled(&graph, &tars);
        for (number, tar) in tars.iter().enumerate() {
            let parent = number.checked_sub(1).map(|below| ids[below].as_str());
            assert_eq!(diff(&graph, &ids[number], parent), *tar, "layer {number}");
        }
        let top = ids.last().map(String::as_str);
        graph.create("c-init", top, &[("inodes".into(), "9".into())]).unwrap_err();
        graph.create("c-init", top, &[]).unwrap();
        let path = graph.get("c-init", None).unwrap();
        std::fs::write(path.join("etc/hosts"), b"").unwrap();
        graph.put("c-init").unwrap();
        graph.create("c", Some("c-init"), &[]).unwrap();
        let path = graph.get("c", None).unwrap();
        assert_eq!(graph.get("c", None).unwrap(), path);
        assert!(!path.join("etc/a").exists() && path.join("etc/hosts").exists());
        std::fs::write(path.join("etc/new"), pattern(3000)).unwrap();
        std::fs::remove_file(path.join("etc/c")).unwrap();
        let changes: Vec<(char, String)> = (graph.changes("c", Some("c-init")).unwrap().iter())
            .map(|(change, path)| (change.letter(), path.to_string()))
            .collect();
        let told = [('C', "/etc"), ('D', "/etc/c"), ('A', "/etc/new")];
        assert_eq!(changes, told.map(|(letter, path)| (letter, path.to_owned())));
        assert_eq!(graph.diff_size("c", Some("c-init")).unwrap(), 3000);
        let tar = diff(&graph, "c", Some("c-init"));
        assert!(tar.windows(9).any(|name| name == b"etc/.wh.c"));
        graph.put("c").unwrap();
        assert!(path.join("etc/new").exists(), "one user is left");
        graph.put("c").unwrap();
        assert!(!path.exists());
        // Committed, as docker does it.
        graph.create("made", top, &[]).unwrap();
        assert_eq!(graph.apply("made", top, &mut &tar[..]).unwrap(), 3000);
        assert_eq!(diff(&graph, "made", top), tar);
        assert_eq!(graph.remove(&ids[0]).unwrap_err().code(), Code::InUse);
        assert_clean(store);
        assert_goes_without_a_trace(place, store);
        graph.remove("never there").unwrap();
        graph.put("never there").unwrap();
    });
}

#[test]
fn root_a_layer_that_gets_a_child_is_written_to_no_more() {
    on_each("root_a_layer_that_gets_a_child_is_written_to_no_more", |place, store| {
        let graph = store.graph("docker");
        graph.create("base", None, &[]).unwrap();
        let path = graph.get("base", None).unwrap();
        let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o755);
        let file = std::fs::File::create(path.join("open")).unwrap();
        let refused = graph.create("child", Some("base"), &[]).unwrap_err();
        assert_eq!(refused.code(), Code::InUse, "{}", told(&refused));
        assert!(!graph.exists("child").unwrap());
        drop(file);
        graph.create("child", Some("base"), &[]).unwrap();
        let written = std::fs::write(path.join("late"), b"x").unwrap_err();
        assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(graph.get("base", None).unwrap(), path);
        graph.put("base").unwrap();
        graph.put("base").unwrap();
        assert!(!path.exists());
        let path = graph.get("base", None).unwrap();
        assert!(std::fs::write(path.join("late"), b"x").is_err(), "sealed layers are mounted read-only");
        let child = graph.get("child", None).unwrap();
        std::fs::write(child.join("open"), b"changed").unwrap();
        assert_eq!(std::fs::read(path.join("open")).unwrap(), b"");
        // What was written through a mount has no tar of its own, but always gives the same.
        assert_eq!(diff(&graph, "base", None), diff(&graph, "base", None));
        assert_clean(store);
        assert_goes_without_a_trace(place, store);
    });
}

#[test]
fn root_an_archive_that_fails_leaves_the_layer_as_it_was() {
    on_each("root_an_archive_that_fails_leaves_the_layer_as_it_was", |place, store| {
        let graph = store.graph("docker");
        let good = Image::simple().tars.remove(0);
        let ids = filled(&graph, std::slice::from_ref(&good));
        let parent = Some(ids[0].as_str());
        graph.create("new", parent, &[]).unwrap();
        let hostile = [
            Tar::new().file("../escaped", b"x").end(),
            Tar::new().dir("d").hard_link("d/l", "nowhere").end(),
            Tar::new().file("a/.wh.", b"").end(),
            good[..good.len() / 2].to_vec(),
        ];
        for (number, tar) in hostile.iter().enumerate() {
            let e = graph.apply("new", parent, &mut &tar[..]).unwrap_err();
            assert!(matches!(e.code(), Code::Archive | Code::Invalid), "{number}: {}", told(&e));
            assert_clean(store);
            assert_nothing_to_collect(store);
        }
        assert!(!place.root().parent().unwrap().join("escaped").exists());
        let wrong_parent = graph.apply("new", None, &mut &good[..]).unwrap_err();
        assert_eq!(wrong_parent.code(), Code::Invalid);
        graph.get("new", None).unwrap();
        assert_eq!(graph.apply("new", parent, &mut &good[..]).unwrap_err().code(), Code::InUse);
        graph.put("new").unwrap();
        graph.apply("new", parent, &mut &good[..]).unwrap();
        assert_eq!(graph.apply("new", parent, &mut &good[..]).unwrap_err().code(), Code::Invalid);
        graph.create("written", parent, &[]).unwrap();
        std::fs::write(graph.get("written", None).unwrap().join("x"), b"").unwrap();
        graph.put("written").unwrap();
        assert_eq!(graph.apply("written", parent, &mut &good[..]).unwrap_err().code(), Code::Invalid);
        assert_goes_without_a_trace(place, store);
    });
}

#[test]
fn root_check_and_rebuild_know_dockers_layers() {
    for driver in DRIVERS {
        let test = "root_check_and_rebuild_know_dockers_layers";
        let Some(place) = Place::new(test, driver) else { continue };
        let store = place.open();
        let graph = store.graph("docker");
        let tars = Image::simple().tars;
        let ids = filled(&graph, &tars);
        graph.create("c", Some(&ids[2]), &[]).unwrap();
        std::fs::write(graph.get("c", None).unwrap().join("mine"), b"kept").unwrap();
        graph.put("c").unwrap();
        // As a power cut leaves it while an archive was unpacked for a layer: two layers say that they are this one.
        for id in ["twice", "other"] {
            graph.create(id, None, &[]).unwrap();
            graph.get(id, None).unwrap();
            graph.put(id).unwrap();
        }
        let other = store.snapshots("docker").stat("other").unwrap().layer;
        let record = place.data().join(format!("layers/{driver}/{other}/layer.json"));
        let text = std::fs::read_to_string(&record).unwrap().replace("\"other\"", "\"twice\"");
        std::fs::write(&record, text).unwrap();
        drop(store);
        Store::rebuild(&place.options()).unwrap();
        let store = place.open();
        let graph = store.graph("docker");
        assert_clean(&store);
        assert_eq!(store.snapshots("docker").stat("twice").unwrap().layer, other);
        graph.remove("twice").unwrap();
        assert_eq!(diff(&graph, &ids[1], Some(&ids[0])), tars[1]);
        assert_eq!(std::fs::read(graph.get("c", None).unwrap().join("mine")).unwrap(), b"kept");
        graph.put("c").unwrap();
        assert_eq!(graph.create(&ids[1], None, &[]).unwrap_err().code(), Code::Exists);
        // A file of an applied layer goes bad.
        let layer = store.snapshots("docker").stat(&ids[1]).unwrap().layer;
        let part = match *driver {
            "vfs" => "dir",
            "btrfs" => "tree",
            _ => "diff",
        };
        let mut file = place.data().join(driver).join(layer.to_string()).join(part).join("usr/x");
        if *driver == "composefs" {
            let home = place.data().join(driver);
            let content = |path: &String| std::fs::read(home.join(path)).is_ok_and(|b| b == pattern(100_000));
            let object = tree(&home).into_iter().find(|path| path.starts_with("objects/") && content(path));
            file = home.join(object.unwrap());
        }
        unlocked(&file, || std::fs::write(&file, b"bad").unwrap());
        let findings = store.check(false, &Silent).unwrap();
        assert!(findings.iter().any(|finding| finding.id == "VLM-L004"), "{findings:#?}");
        let mut tar = Vec::new();
        let e = graph.diff(&ids[1], Some(&ids[0]), &mut tar).unwrap_err();
        assert_eq!(e.code(), Code::Damaged);
        assert_goes_away(&graph, &ids);
    }
}

fn assert_goes_away(graph: &Graph<'_>, ids: &[String]) {
    graph.remove("c").unwrap();
    ids.iter().rev().for_each(|id| graph.remove(id).unwrap());
}

#[test]
fn root_differences_to_any_layer_are_told() {
    on_each("root_differences_to_any_layer_are_told", |place, store| {
        let graph = store.graph("docker");
        let ids = filled(&graph, &Image::simple().tars);
        let told: Vec<(Change, String)> = (graph.changes(&ids[2], Some(&ids[0])).unwrap().into_iter())
            .map(|(change, path)| (change, path.to_string()))
            .collect();
        for one in [(Change::Deleted, "/etc/a"), (Change::Added, "/etc/c"), (Change::Added, "/usr/x")] {
            assert!(told.contains(&(one.0, one.1.to_owned())), "{told:?}");
        }
        let whole = graph.diff_size(&ids[2], None).unwrap();
        assert_eq!(whole, 5000 + 100_000 + 5);
        let tar = diff(&graph, &ids[2], None);
        graph.create("flat", None, &[]).unwrap();
        assert_eq!(graph.apply("flat", None, &mut &tar[..]).unwrap(), whole);
        assert!(graph.changes("flat", Some(&ids[2])).unwrap().is_empty());
        assert_goes_without_a_trace(place, store);
    });
}

#[test]
fn root_cleanup_leaves_mounts_that_live_elsewhere() {
    on_each("root_cleanup_leaves_mounts_that_live_elsewhere", |place, store| {
        let graph = store.graph("docker");
        let elsewhere = place.root().join("../elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        for id in ["kept", "left"] {
            graph.create(id, None, &[]).unwrap();
        }
        let (kept, left) = (graph.get("kept", None).unwrap(), graph.get("left", None).unwrap());
        rustix::mount::mount_bind(&kept, &elsewhere).unwrap();
        let unmounted = graph.cleanup();
        let still = kept.exists();
        vellum_sys::mount::unmount(&elsewhere.canonicalize().unwrap(), false).unwrap();
        assert_eq!(unmounted.unwrap(), 1);
        assert!(still && !left.exists());
        assert_eq!(graph.cleanup().unwrap(), 1);
        assert!(!kept.exists());
        assert_goes_without_a_trace(place, store);
    });
}
