//! Mounting, counting, unmounting, viewing; needs root.

mod common;

use common::{Place, id, overlay_of, root, skip};
use std::path::{Path, PathBuf};
use vellum_driver::{Device, Mount, MountOption, MountPlan, MountSource, PathRef, Step, Views};
use vellum_mount::{Error, Released, Swept};

const LAYER: u32 = 7;

/// Whether the kernel takes layers one by one (Linux 6.7).
fn one_by_one(place: &Place) -> bool {
    vellum_sys::mount::takes_layers_one_by_one(place.path()).unwrap()
}

fn gone() -> Released {
    Released { unmounted: true, left: 0 }
}

#[test]
fn root_overlays_of_1_128_and_499_layers_are_mounted_written_and_unmounted() {
    if !root("root_overlays_of_1_128_and_499_layers_are_mounted_written_and_unmounted") {
        return;
    }
    for base in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let place = Place::below(&base);
        let lowers = place.lowers(499);
        let mounter = place.mounter();
        let all = if one_by_one(&place) { 499 } else { 127 };
        for count in [1, 128, all] {
            let plan = place.overlay(&format!("u{count}"), &lowers[..count]);
            let path = mounter.acquire(id(LAYER), &plan).unwrap();
            assert_eq!(
                std::fs::read_to_string(path.join("all")).unwrap(),
                "l0",
                "the first layer is the nearest"
            );
            assert!(path.join(format!("l{}", count - 1)).exists());
            std::fs::write(path.join("new"), "n").unwrap();
            assert!(place.path().join(format!("layers/u{count}/diff/new")).exists());
            assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
            place.assert_clean();
        }
    }
}

#[test]
fn root_the_way_of_old_kernels_mounts_1_14_and_128_layers() {
    if !root("root_the_way_of_old_kernels_mounts_1_14_and_128_layers") {
        return;
    }
    let place = Place::new();
    // The folder they lie in is too long to be named for each.
    let lowers: Vec<_> = (0..128).map(|n| place.lower(&format!("{}/l{n}", "f".repeat(200)))).collect();
    let mounter = place.mounter().in_one_page();
    for count in [1, 14, 128] {
        let mut plan = place.overlay(&format!("u{count}"), &lowers[..count]);
        plan.root.options.push(MountOption::Text("index".into(), "off".into()));
        plan.root.options.push(MountOption::Flag("volatile".into()));
        let path = mounter.acquire(id(LAYER), &plan).unwrap();
        assert_eq!(place.mounts(), std::slice::from_ref(&path), "no mount is left where it was made");
        assert!(
            std::fs::read_to_string(path.join("all")).unwrap().ends_with("/l0"),
            "the nearest comes first"
        );
        assert!((0..count).all(|n| path.join(format!("l{n}")).exists()));
        std::fs::write(path.join("new"), "n").unwrap();
        assert!(place.path().join(format!("layers/u{count}/diff/new")).exists());
        // A view of a layer that is mounted, and another mounter that can do better and finds the same mount.
        let view = mounter.view(&plan).unwrap();
        assert!(rustix::fs::statat(view.root(), "new", rustix::fs::AtFlags::empty()).is_ok());
        assert_eq!(place.mounter().acquire(id(LAYER), &plan).unwrap(), path);
        assert_eq!(mounter.release(id(LAYER)).unwrap().left, 1);
        assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
        drop(view);
        let read_only = MountPlan {
            root: Mount { read_only: true, ..overlay_of(lowers.iter().cloned().map(PathRef::Host)).root },
            ..MountPlan::default()
        };
        let path = mounter.acquire(id(LAYER), &read_only).unwrap();
        let refused = std::fs::write(path.join("new"), "n").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
        assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
        place.assert_clean();
    }
}

#[test]
fn root_the_way_of_old_kernels_takes_odd_names_and_says_when_a_page_is_full() {
    if !root("root_the_way_of_old_kernels_takes_odd_names_and_says_when_a_page_is_full") {
        return;
    }
    let place = Place::new();
    let names = ["colon:comma,", "back\\slash", "quote\"", "plain"];
    let lowers: Vec<_> = names.map(|n| place.lower(n)).into();
    let mounter = place.mounter().in_one_page();
    let path = mounter.acquire(id(LAYER), &place.overlay("u,:\\", &lowers)).unwrap();
    assert!(names.iter().all(|name| path.join(name).exists()));
    assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
    let plan = place.overlay("full", &place.lowers(400));
    let error = mounter.acquire(id(LAYER), &plan).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("400 lower layers") && cause.contains("this kernel takes 4095"), "{cause}");
    place.assert_clean();

    // Killed between mount and clone.
    std::fs::create_dir_all(place.path().join("run/views/left")).unwrap();
    let left = place.path().join("run/views/left").canonicalize().unwrap();
    rustix::mount::mount("tmpfs", &left, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let _: Swept = mounter.sweep().unwrap();
    place.assert_clean();
}

#[test]
fn root_501_layers_are_refused_in_the_kernels_own_words() {
    if !root("root_501_layers_are_refused_in_the_kernels_own_words") {
        return;
    }
    let place = Place::new();
    if !one_by_one(&place) {
        return skip(
            "root_501_layers_are_refused_in_the_kernels_own_words",
            "this kernel does not take layers one by one",
        );
    }
    let plan = place.overlay("u", &place.lowers(501));
    let error = place.mounter().acquire(id(LAYER), &plan).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("too many lower directories, limit is 500"), "{cause}");
    assert!(error.to_string().contains("layer 7"), "{error}");
    place.assert_clean();
}

#[test]
fn root_long_and_odd_paths_are_mounted() {
    if !root("root_long_and_odd_paths_are_mounted") {
        return;
    }
    let place = Place::new();
    let long = format!("{}/{}", "a".repeat(200), "b".repeat(200));
    let lowers: Vec<_> =
        [long.as_str(), "colon:comma,", "back\\slash", "plain"].map(|n| place.lower(n)).into();
    let mounter = place.mounter();
    let path = mounter.acquire(id(LAYER), &place.overlay("u,:\\", &lowers)).unwrap();
    for name in [&"b".repeat(200), "colon:comma,", "back\\slash", "plain"] {
        assert!(path.join(name).exists(), "{name}");
    }
    assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
    place.assert_clean();
}

#[test]
fn root_users_are_counted_over_several_mounters() {
    if !root("root_users_are_counted_over_several_mounters") {
        return;
    }
    let place = Place::new();
    let plan = place.overlay("u", &place.lowers(2));
    let (one, two) = (place.mounter(), place.mounter());
    let path = one.acquire(id(LAYER), &plan).unwrap();
    assert_eq!(two.acquire(id(LAYER), &plan).unwrap(), path);
    assert_eq!(place.mounts(), std::slice::from_ref(&path));
    let found = two.mounted(id(LAYER)).unwrap().unwrap();
    assert_eq!((found.count, found.target, found.read_only), (2, path, false));
    assert_eq!(one.list().unwrap().len(), 1);
    let read_only = MountPlan { root: Mount { read_only: true, ..plan.root.clone() }, ..plan.clone() };
    assert!(matches!(two.acquire(id(LAYER), &read_only), Err(Error::Different { .. })));
    assert_eq!(two.release(id(LAYER)).unwrap(), Released { unmounted: false, left: 1 });
    assert_eq!(one.release(id(LAYER)).unwrap(), gone());
    assert_eq!(one.release(id(LAYER)).unwrap(), Released { unmounted: false, left: 0 });
    assert_eq!(two.mounted(id(LAYER)).unwrap(), None);
    place.assert_clean();
}

#[test]
fn root_a_busy_mount_names_its_user_and_goes_lazily() {
    if !root("root_a_busy_mount_names_its_user_and_goes_lazily") {
        return;
    }
    let place = Place::new();
    let mounter = place.mounter();
    let path = mounter.acquire(id(LAYER), &place.overlay("u", &place.lowers(1))).unwrap();
    let file = std::fs::File::open(path.join("all")).unwrap();
    match mounter.release(id(LAYER)).unwrap_err() {
        Error::Busy { holders, .. } => {
            assert!(holders.iter().any(|holder| holder.pid == std::process::id()), "{holders:?}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(mounter.mounted(id(LAYER)).unwrap().unwrap().count, 1, "nothing has changed");
    assert_eq!(mounter.release_all(id(LAYER), true).unwrap(), gone());
    assert_eq!(std::io::read_to_string(file).unwrap(), "l0", "who is in it keeps what it sees");
    place.assert_clean();
}

#[test]
fn root_mounts_over_and_in_a_layer_are_busy_and_go_lazily() {
    if !root("root_mounts_over_and_in_a_layer_are_busy_and_go_lazily") {
        return;
    }
    let place = Place::new();
    let mounter = place.mounter();
    let plan = place.overlay("u", &place.lowers(1));
    let tmpfs = |target: &Path| {
        let context = vellum_sys::mount::FsContext::open("tmpfs").unwrap();
        context.mount(rustix::mount::MountAttrFlags::empty()).unwrap().attach(target).unwrap();
    };
    let path = mounter.acquire(id(LAYER), &plan).unwrap();
    std::fs::create_dir(path.join("in")).unwrap();
    tmpfs(&path.join("in"));
    match mounter.release(id(LAYER)).unwrap_err() {
        Error::Busy { mounts, .. } => assert_eq!(mounts, [path.join("in")]),
        other => panic!("{other}"),
    }
    tmpfs(&path);
    match mounter.release(id(LAYER)).unwrap_err() {
        Error::Busy { mounts, .. } => assert!(mounts.contains(&path), "{mounts:?}"),
        other => panic!("{other}"),
    }
    assert_eq!(mounter.sweep().unwrap(), Swept::default(), "a covered mount is there all the same");
    assert_eq!(mounter.release_all(id(LAYER), true).unwrap(), gone());
    place.assert_clean();
}

#[test]
fn root_a_read_only_mount_and_a_bind_are_mounted() {
    if !root("root_a_read_only_mount_and_a_bind_are_mounted") {
        return;
    }
    let place = Place::new();
    let mounter = place.mounter();
    let lowers = place.lowers(2);
    let mut plan = overlay_of(lowers.iter().cloned().map(PathRef::Host));
    plan.root.read_only = true;
    for plan in [plan, MountPlan::bind(&lowers[0], true)] {
        let path = mounter.acquire(id(LAYER), &plan).unwrap();
        let error = std::fs::write(path.join("new"), "n").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(mounter.mounted(id(LAYER)).unwrap().unwrap().read_only);
        assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
    }
    let path = mounter.acquire(id(LAYER), &MountPlan::bind(&lowers[0], false)).unwrap();
    std::fs::write(path.join("new"), "n").unwrap();
    assert!(lowers[0].join("new").exists());
    assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
    place.assert_clean();
}

/// An EROFS image of a folder; `None` if there is no mkfs.erofs.
fn erofs(place: &Place, name: &str) -> Option<PathBuf> {
    let image = place.path().join("image.erofs");
    let made =
        std::process::Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(place.lower("flat")).output();
    match made {
        Ok(output) if output.status.success() => Some(image),
        other => {
            skip(name, format!("mkfs.erofs: {other:?}"));
            None
        }
    }
}

/// An overlay over the image on a loop device, mounted once for all.
fn flat_plan(place: &Place, image: &Path, upper: &str) -> MountPlan {
    let mut plan = place.overlay(upper, &[]);
    plan.root
        .options
        .insert(0, MountOption::Path("lowerdir+".into(), PathRef::Prepared("flat-mount".into())));
    plan.prepare = vec![
        Step::Activate {
            key: "flat-device".into(),
            device: Device::Loop { file: image.to_owned(), read_only: true },
        },
        Step::Shared {
            key: "flat-mount".into(),
            mount: Mount {
                fs_type: "erofs".into(),
                source: MountSource::Prepared("flat-device".into()),
                options: Vec::new(),
                read_only: true,
            },
        },
    ];
    plan
}

fn wait_until_detached(image: &Path) {
    for _ in 0..6000 {
        if vellum_sys::loopdev::LoopDevice::find(image).unwrap().is_none() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the loop device stayed");
}

#[test]
fn loop_an_image_is_mounted_once_for_two_layers_and_detached_with_the_last() {
    let name = "loop_an_image_is_mounted_once_for_two_layers_and_detached_with_the_last";
    if !root(name) {
        return;
    }
    let place = Place::new();
    let Some(image) = erofs(&place, name) else { return };
    let mounter = place.mounter();
    let one = mounter.acquire(id(1), &flat_plan(&place, &image, "u1")).unwrap();
    let two = mounter.acquire(id(2), &flat_plan(&place, &image, "u2")).unwrap();
    assert!(one.join("flat").exists() && two.join("flat").exists());
    let shared = place.path().canonicalize().unwrap().join("run/shared/flat-mount");
    assert_eq!(place.mounts(), [one, two, shared.clone()]);
    assert_eq!(place.names("run/steps"), ["flat-device", "flat-mount"]);
    assert_eq!(mounter.release(id(1)).unwrap(), gone());
    assert!(place.mounts().contains(&shared));
    assert_eq!(mounter.sweep().unwrap(), Swept::default());
    assert_eq!(mounter.release(id(2)).unwrap(), gone());
    place.assert_clean();
    wait_until_detached(&image);
}

#[test]
fn loop_what_is_held_is_mounted_by_others_from_strings() {
    let name = "loop_what_is_held_is_mounted_by_others_from_strings";
    if !root(name) {
        return;
    }
    let place = Place::new();
    let Some(image) = erofs(&place, name) else { return };
    let plan = flat_plan(&place, &image, "u");
    assert_eq!(plan.classic(), None);
    let held = place.mounter().hold(id(1), &plan).unwrap().expect("the root has no device");
    let strings = MountPlan::of(held.clone()).classic().expect("all has a place now").remove(0);
    let outside = place.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", &strings.fs_type, "-o", &strings.options.join(","), &strings.source])
        .arg(&outside)
        .status();
    assert!(mount.unwrap().success());
    assert!(outside.join("flat").exists());
    // Another process finds it held, a sweep leaves it, and it is counted once.
    let mounter = place.mounter();
    assert_eq!(mounter.hold(id(1), &plan).unwrap(), Some(held));
    assert_eq!(mounter.sweep().unwrap(), Swept::default());
    assert_eq!(mounter.mounted(id(1)).unwrap().unwrap().count, 1);
    vellum_sys::mount::unmount(&outside, false).unwrap();
    assert_eq!(mounter.release_all(id(1), true).unwrap(), gone());
    // A plan that is the mounter's alone is not held, but mounted.
    let alone = MountPlan { by_mounter: true, ..plan };
    assert_eq!(mounter.hold(id(1), &alone).unwrap(), None);
    assert_eq!(mounter.mounted(id(1)).unwrap(), None);
    std::fs::remove_dir(&outside).unwrap();
    place.assert_clean();
    wait_until_detached(&image);
}

#[test]
fn loop_a_view_of_shared_steps_leaves_nothing() {
    let name = "loop_a_view_of_shared_steps_leaves_nothing";
    if !root(name) {
        return;
    }
    let place = Place::new();
    let Some(image) = erofs(&place, name) else { return };
    // As this kernel does it, and as older ones do.
    for mounter in [place.mounter(), place.mounter().with_places(), place.mounter().in_one_page()] {
        let view = mounter.view(&flat_plan(&place, &image, "u")).unwrap();
        assert_eq!(place.mounts(), Vec::<PathBuf>::new());
        assert!(rustix::fs::statat(view.root(), "flat", rustix::fs::AtFlags::empty()).is_ok());
        drop(view);
        place.assert_clean();
        wait_until_detached(&image);
    }
}

#[test]
fn root_views_are_read_only_and_leave_nothing() {
    if !root("root_views_are_read_only_and_leave_nothing") {
        return;
    }
    let place = Place::new();
    let mounter = place.mounter();
    let plan = place.overlay("u", &place.lowers(3));
    let path = mounter.acquire(id(LAYER), &plan).unwrap();
    std::fs::write(path.join("new"), "n").unwrap();
    std::fs::remove_file(path.join("l1")).unwrap();
    let exists = |view: &dyn vellum_driver::View, name: &str| {
        rustix::fs::statat(view.root(), name, rustix::fs::AtFlags::empty()).is_ok()
    };
    // Of a layer that is mounted at the same time.
    let view = mounter.view(&plan).unwrap();
    assert!(exists(&*view, "new") && exists(&*view, "l2") && !exists(&*view, "l1"));
    let made = vellum_sys::file::create(view.root(), "more", 0o600);
    assert_eq!(made.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(place.mounts(), [path]);
    drop(view);
    assert_eq!(mounter.release(id(LAYER)).unwrap(), gone());
    // A base without anything below it, and a plain folder.
    let base = place.lower("base");
    for plan in [overlay_of([PathRef::Host(base.clone())]), MountPlan::bind(&base, true)] {
        let view = mounter.view(&plan).unwrap();
        assert!(exists(&*view, "base") && !exists(&*view, "l1"));
    }
    place.assert_clean();
}

#[test]
fn root_plans_that_make_no_sense_are_refused_and_leave_nothing() {
    if !root("root_plans_that_make_no_sense_are_refused_and_leave_nothing") {
        return;
    }
    let place = Place::new();
    let mounter = place.mounter();
    let mut no_step = place.overlay("u", &[]);
    no_step.root.options.push(MountOption::Path("lowerdir+".into(), PathRef::Prepared("nothing".into())));
    let mut bad_key = place.overlay("u", &place.lowers(1));
    let mount = Mount { fs_type: "tmpfs".into(), ..Mount::default() };
    bad_key.prepare.push(Step::Shared { key: "../x".into(), mount });
    for plan in [no_step, bad_key] {
        assert!(matches!(mounter.acquire(id(LAYER), &plan), Err(Error::Plan { .. })));
        place.assert_clean();
    }
    let unknown = MountPlan::of(Mount { fs_type: "nosuchfs".into(), ..Mount::default() });
    assert!(matches!(mounter.acquire(id(LAYER), &unknown), Err(Error::Kernel { .. })));
    place.assert_clean();
}

#[test]
fn root_a_hundred_shared_steps_of_threads_converge() {
    if !root("root_a_hundred_shared_steps_of_threads_converge") {
        return;
    }
    let place = Place::new();
    let mounter = place.mounter();
    let plan_of = |number: u32| {
        let mut plan = place.overlay(&format!("u{number}"), &place.lowers(1));
        plan.prepare.push(Step::Shared {
            key: "scratch".into(),
            mount: Mount { fs_type: "tmpfs".into(), ..Mount::default() },
        });
        plan
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mounter, plan) = (&mounter, plan_of(thread));
            scope.spawn(move || {
                for _ in 0..25 {
                    mounter.acquire(id(thread + 1), &plan).unwrap();
                    let _ = mounter.sweep().unwrap();
                    assert!(mounter.release(id(thread + 1)).unwrap().unmounted);
                }
            });
        }
    });
    let _ = mounter.sweep().unwrap();
    place.assert_clean();
}
