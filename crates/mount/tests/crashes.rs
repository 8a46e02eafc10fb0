//! What killed processes, other processes, other namespaces and reboots leave; needs root.

mod common;

use common::{Place, id, mounter_in, overlay_of, root, skip, start, task, was_killed};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use vellum_driver::{Mount, MountPlan, PathRef, Step, Views as _};
use vellum_mount::{Error, FAULT_POINTS, Released, Swept};

const LAYER: u32 = 7;

/// A plan that any process of the test builds in the same way: an overlay and a shared step.
fn plan(place: &Path) -> MountPlan {
    let folder = |name: &str| place.join("layers").join(name);
    for name in ["l0", "u/diff", "u/work"] {
        std::fs::create_dir_all(folder(name)).unwrap();
    }
    let mut plan = overlay_of([PathRef::Host(folder("l0"))]);
    for (option, name) in [("upperdir", "u/diff"), ("workdir", "u/work")] {
        plan.root.options.push(vellum_driver::MountOption::Path(option.into(), PathRef::Host(folder(name))));
    }
    plan.prepare.push(Step::Shared {
        key: "scratch".into(),
        mount: Mount { fs_type: "tmpfs".into(), ..Mount::default() },
    });
    plan
}

/// What children do: one operation, in a place. Without a task there is nothing to do.
#[test]
#[expect(clippy::print_stdout, reason = "this is how the child talks to its parent")]
fn child() {
    let Some((task, place)) = task() else { return };
    let mounter = mounter_in(&place);
    match task.as_str() {
        // A failure is for the parent to see, without the noise of a panic.
        "acquire" if mounter.acquire(id(LAYER), &plan(&place)).is_err() => std::process::exit(1),
        "acquire" => {}
        "release" => assert!(mounter.release(id(LAYER)).is_ok()),
        "sweep" => assert!(mounter.sweep().is_ok()),
        "view" => assert!(mounter.with_places().view(&plan(&place)).is_ok()),
        "read-only" => assert!(mounter.turn_read_only(id(LAYER)).is_ok()),
        "contend" => {
            for _ in 0..50 {
                let path = mounter.acquire(id(LAYER), &plan(&place)).unwrap();
                assert_eq!(vellum_sys::mountinfo::at(&path).unwrap().len(), 1);
                let _ = mounter.release(id(LAYER)).unwrap();
            }
        }
        "hold" => {
            mounter.acquire(id(LAYER), &plan(&place)).unwrap();
            println!("\nholding");
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        other => panic!("{other}"),
    }
}

/// Kills a child at `point` while it does `task`; false if it does not pass there.
fn killed_at(place: &Place, task: &str, point: &str) -> bool {
    was_killed(start(place, task, Some(point), &[]))
}

#[test]
fn root_a_kill_at_any_point_leaves_nothing_that_the_next_does_not_clean() {
    if !root("root_a_kill_at_any_point_leaves_nothing_that_the_next_does_not_clean") {
        return;
    }
    let mut passed = std::collections::BTreeSet::new();
    for point in FAULT_POINTS {
        for task in ["acquire", "release", "sweep", "read-only", "view"] {
            for cure in ["sweep", "acquire", "release"] {
                let place = Place::new();
                let mounter = place.mounter();
                match task {
                    "release" | "read-only" => drop(mounter.acquire(id(LAYER), &plan(place.path())).unwrap()),
                    // A holder that is not mounted, for the sweep to find.
                    "sweep" => assert!(killed_at(&place, "acquire", "mount.acquire.step")),
                    _ => {}
                }
                if !killed_at(&place, task, point) {
                    break;
                }
                passed.insert(*point);
                match cure {
                    "acquire" if task == "read-only" => {
                        mounter.turn_read_only(id(LAYER)).unwrap();
                        let written = std::fs::write(mounter.target(id(LAYER)).join("x"), b"");
                        let kind = written.unwrap_err().kind();
                        assert_eq!(kind, std::io::ErrorKind::ReadOnlyFilesystem, "{point}");
                        assert!(mounter.mounted(id(LAYER)).unwrap().unwrap().read_only, "{point}");
                    }
                    "acquire" => {
                        mounter.acquire(id(LAYER), &plan(place.path())).unwrap();
                        let path = mounter.target(id(LAYER));
                        assert_eq!(vellum_sys::mountinfo::at(&path).unwrap().len(), 1, "{task} {point}");
                    }
                    "release" => drop(mounter.release(id(LAYER)).unwrap()),
                    _ => {}
                }
                let _ = mounter.release_all(id(LAYER), false).unwrap();
                let _ = mounter.sweep().unwrap();
                assert_eq!(
                    mounter.sweep().unwrap(),
                    Swept::default(),
                    "{task} {point} {cure}: sweeps converge"
                );
                place.assert_clean();
            }
        }
    }
    let counted = "mount.count.changed";
    let missed: Vec<_> =
        FAULT_POINTS.iter().filter(|point| !passed.contains(*point) && **point != counted).collect();
    assert!(missed.is_empty(), "no operation passes {missed:?}");
}

#[test]
fn root_a_failure_at_any_point_is_an_error_and_leaves_nothing() {
    if !root("root_a_failure_at_any_point_is_an_error_and_leaves_nothing") {
        return;
    }
    for point in FAULT_POINTS.iter().filter(|point| !point.contains("release") && !point.contains("sweep")) {
        let place = Place::new();
        let output =
            start(&place, "acquire", Some(&format!("{point}=ENOSPC")), &[]).wait_with_output().unwrap();
        if !output.status.success() {
            let _ = place.mounter().sweep().unwrap();
            place.assert_clean();
        }
    }
}

#[test]
fn root_processes_that_acquire_one_layer_at_once_mount_it_once() {
    if !root("root_processes_that_acquire_one_layer_at_once_mount_it_once") {
        return;
    }
    let place = Place::new();
    drop(plan(place.path()));
    let children: Vec<_> = (0..4).map(|_| start(&place, "contend", None, &[])).collect();
    for child in children {
        assert!(!was_killed(child));
    }
    place.assert_clean();
}

/// Unmounts. A process that another test starts at this moment has this one's descriptors until it runs its program: that takes a moment's patience.
fn unmounted(path: &std::path::Path) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while let Err(error) = vellum_sys::mount::unmount(path, false) {
        assert!(std::time::Instant::now() < until, "{}: {error}", path.display());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn root_records_of_another_boot_are_stale() {
    if !root("root_records_of_another_boot_are_stale") {
        return;
    }
    for cure in ["sweep", "acquire", "release"] {
        let place = Place::new();
        let mounter = place.mounter();
        let path = mounter.acquire(id(LAYER), &plan(place.path())).unwrap();
        mounter.acquire(id(LAYER), &plan(place.path())).unwrap();
        // What a reboot does: no mounts, another boot id.
        unmounted(&path);
        unmounted(&place.path().join("run/shared/scratch"));
        for record in [place.path().join("run/mounts/7"), place.path().join("run/steps/scratch")] {
            let text = std::fs::read_to_string(&record).unwrap();
            let other = "00000000-0000-4000-8000-000000000000";
            std::fs::write(&record, text.replace(vellum_sys::boot::id().unwrap(), other)).unwrap();
        }
        assert_eq!(mounter.mounted(id(LAYER)).unwrap(), None);
        assert_eq!(mounter.list().unwrap(), []);
        match cure {
            "acquire" => {
                mounter.acquire(id(LAYER), &plan(place.path())).unwrap();
                assert_eq!(
                    mounter.mounted(id(LAYER)).unwrap().unwrap().count,
                    1,
                    "the old count is not believed"
                );
                assert!(mounter.release(id(LAYER)).unwrap().unmounted);
            }
            "release" => {
                let nothing = Released { unmounted: false, left: 0 };
                assert_eq!(mounter.release(id(LAYER)).unwrap(), nothing);
            }
            _ => assert_eq!(mounter.sweep().unwrap(), Swept { records: 1, steps: 1, mountpoints: 0 }),
        }
        place.assert_clean();
    }
}

#[test]
fn root_a_lost_runtime_folder_leads_to_no_second_mount() {
    if !root("root_a_lost_runtime_folder_leads_to_no_second_mount") {
        return;
    }
    let place = Place::new();
    let path = place.mounter().acquire(id(LAYER), &plan(place.path())).unwrap();
    std::fs::remove_file(place.path().join("run/mounts/7")).unwrap();
    let mounter = place.mounter();
    let file = std::fs::File::create(path.join("x")).unwrap();
    assert!(matches!(mounter.acquire(id(LAYER), &plan(place.path())), Err(Error::Busy { .. })));
    let _ = mounter.sweep().unwrap();
    assert_eq!(vellum_sys::mountinfo::at(&path).unwrap().len(), 1, "a sweep leaves what is in use");
    drop(file);
    mounter.acquire(id(LAYER), &plan(place.path())).unwrap();
    assert_eq!(vellum_sys::mountinfo::at(&path).unwrap().len(), 1);
    assert!(mounter.release(id(LAYER)).unwrap().unmounted);
    let _ = mounter.sweep().unwrap();
    place.assert_clean();
}

#[test]
fn root_a_layer_mounted_in_another_namespace_is_not_mounted_again() {
    let name = "root_a_layer_mounted_in_another_namespace_is_not_mounted_again";
    if !root(name) {
        return;
    }
    if std::process::Command::new("unshare").args(["-m", "true"]).status().map_or(true, |s| !s.success()) {
        return skip(name, "needs unshare(1)");
    }
    let place = Place::new();
    let mounter = place.mounter();
    let mut holder = start(&place, "hold", None, &["unshare", "-m"]);
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "holding"));
    assert!(matches!(mounter.acquire(id(LAYER), &plan(place.path())), Err(Error::Elsewhere { .. })));
    assert!(matches!(mounter.release(id(LAYER)), Err(Error::Elsewhere { .. })));
    assert_eq!(mounter.sweep().unwrap(), Swept::default());
    assert!(mounter.mounted(id(LAYER)).unwrap().is_some());
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    holder.wait().unwrap();
    // The namespace went with its last process, and the mounts with it.
    mounter.acquire(id(LAYER), &plan(place.path())).unwrap();
    assert!(mounter.release(id(LAYER)).unwrap().unmounted);
    let _ = mounter.sweep().unwrap();
    place.assert_clean();
}
