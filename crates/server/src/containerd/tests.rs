//! The calls, on real stores. containerd's own suite is run from tests/go.

use super::service::Service;
use super::snapshots::snapshots_server::Snapshots as _;
use super::snapshots::*;
use crate::metrics::Metrics;
use crate::{Door, DoorKind};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};
use vellum_store::{Floor, OpenOptions, Store};
use vellum_testkit::scratch::{Kind, Scratch};

struct Served {
    service: Service,
    dir: tempfile::TempDir,
    options: OpenOptions,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Store::reset(&self.options);
    }
}

fn options(dir: &Path, driver: &str) -> OpenOptions {
    OpenOptions {
        runtime: Some(dir.join("run")),
        driver: Some(driver.into()),
        floor: Floor::NONE,
        ..OpenOptions::new(dir.join("root"))
    }
}

/// Runs a test behind each driver; needs root.
fn each(test: &str, work: impl AsyncFn(&Served)) {
    if !rustix::process::geteuid().is_root() {
        vellum_testkit::skip::record(test, "the drivers need root");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for driver in ["overlay", "vfs"] {
        runtime.block_on(work(&Served::new(tempfile::tempdir().unwrap(), driver)));
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn prepare(key: &str, parent: &str, pairs: &[(&str, &str)]) -> Request<PrepareSnapshotRequest> {
    Request::new(PrepareSnapshotRequest {
        snapshotter: "vellum".into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels(pairs),
    })
}

fn commit(name: &str, key: &str, parent: &str) -> Request<CommitSnapshotRequest> {
    Request::new(CommitSnapshotRequest {
        name: name.into(),
        key: key.into(),
        parent: parent.into(),
        ..CommitSnapshotRequest::default()
    })
}

impl Served {
    fn new(dir: tempfile::TempDir, driver: &str) -> Self {
        let options = options(dir.path(), driver);
        let store = Arc::new(Store::open(&options).unwrap());
        let door = Door::new(DoorKind::Containerd, dir.path());
        let service = Service::new(store, &door, Metrics::new().meter("test"));
        Self { service, dir, options }
    }

    async fn names(&self, filters: &[&str]) -> Vec<String> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { snapshotter: String::new(), filters };
        let mut stream = self.service.list(Request::new(request)).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(message) = stream.next().await {
            names.extend(message.unwrap().info.into_iter().map(|info| info.name));
        }
        names
    }
}

#[test]
fn root_layers_unpacked_side_by_side_are_joined_at_commit() {
    each("root_layers_unpacked_side_by_side_are_joined_at_commit", async |served| {
        let service = &served.service;
        for key in ["x-base", "x-top"] {
            let mounts = service.prepare(prepare(key, "", &[])).await.unwrap().into_inner().mounts;
            assert_eq!(mounts.len(), 1, "{mounts:?}");
            let folder = &mounts[0].source;
            if mounts[0].r#type == "bind" {
                std::fs::write(Path::new(folder).join(key), key).unwrap();
            } else {
                let upper = mounts[0].options.iter().find_map(|o| o.strip_prefix("upperdir=")).unwrap();
                std::fs::write(Path::new(upper).join(key), key).unwrap();
            }
        }
        service.commit(commit("base", "x-base", "")).await.unwrap();
        let joins = served.options.driver.as_deref() == Some("overlay");
        let joined = service.commit(commit("top", "x-top", "base")).await;
        if !joins {
            assert_eq!(joined.unwrap_err().code(), Code::Unimplemented);
            return;
        }
        joined.unwrap();
        let view =
            ViewSnapshotRequest { key: "v".into(), parent: "top".into(), ..ViewSnapshotRequest::default() };
        let mounts = service.view(Request::new(view)).await.unwrap().into_inner().mounts;
        assert!(mounts[0].options.iter().any(|option| option == "ro"), "{mounts:?}");
        let lowers = mounts[0].options.iter().find_map(|o| o.strip_prefix("lowerdir=")).unwrap();
        let found: Vec<bool> = lowers
            .split(':')
            .zip(["x-top", "x-base"])
            .map(|(lower, name)| Path::new(lower).join(name).exists())
            .collect();
        assert_eq!(found, [true, true]);
        assert!(served.dir.path().exists());
    });
}

#[test]
fn root_directories_that_an_archive_leaves_out_are_as_below_when_layers_are_joined() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    each("root_directories_that_an_archive_leaves_out_are_as_below_when_layers_are_joined", async |served| {
        if served.options.driver.as_deref() != Some("overlay") {
            return;
        }
        let service = &served.service;
        let unpacked = [("containerd.io/snapshot.ref", "sha256:x")];
        let mut uppers = Vec::new();
        for (key, labels) in [("base", &[][..]), ("archive", &unpacked), ("written", &[])] {
            let mounts = service.prepare(prepare(key, "", labels)).await.unwrap().into_inner().mounts;
            let upper = mounts[0].options.iter().find_map(|o| o.strip_prefix("upperdir=")).unwrap();
            uppers.push(Path::new(upper).to_owned());
        }
        for (upper, bits) in uppers.iter().zip([0o750, 0o755, 0o755]) {
            for name in ["listed", "left-out", "left-out/deep"] {
                std::fs::create_dir(upper.join(name)).unwrap();
                mode(&upper.join(name), bits);
            }
        }
        mode(&uppers[0], 0o711);
        chown(uppers[0].join("left-out/deep"), Some(7), Some(8)).unwrap();
        // An archive's own time, which is set when the directory is filled.
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        std::fs::File::open(uppers[1].join("listed")).unwrap().set_modified(old).unwrap();

        service.commit(commit("below", "base", "")).await.unwrap();
        for key in ["archive", "written"] {
            service.commit(commit(&format!("{key}-done"), key, "below")).await.unwrap();
        }
        let found = |upper: &Path, name: &str| {
            let metadata = upper.join(name).metadata().unwrap();
            use std::os::unix::fs::MetadataExt as _;
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
        };
        for (name, wanted) in [
            ("", (0o711, 0, 0)),
            ("listed", (0o755, 0, 0)),
            ("left-out", (0o750, 0, 0)),
            ("left-out/deep", (0o750, 7, 8)),
        ] {
            assert_eq!(found(&uppers[1], name), wanted, "{name}");
            assert_eq!(
                found(&uppers[2], name),
                (0o755, 0, 0),
                "what was not unpacked is as it was written: {name}"
            );
        }
    });
}

#[test]
fn root_each_refusal_has_its_status() {
    each("root_each_refusal_has_its_status", async |served| {
        let service = &served.service;
        let code = |result: Result<(), tonic::Status>| result.unwrap_err().code();
        let made = async |request| service.prepare(request).await.map(drop);
        made(prepare("a", "", &[])).await.unwrap();
        assert_eq!(code(made(prepare("a", "", &[])).await), Code::AlreadyExists);
        assert_eq!(code(made(prepare("", "", &[])).await), Code::InvalidArgument);
        assert_eq!(code(made(prepare("b", "a", &[])).await), Code::InvalidArgument);
        assert_eq!(code(made(prepare("b", "nothing", &[])).await), Code::NotFound);
        let long = "v".repeat(5000);
        assert_eq!(code(made(prepare("b", "", &[("l", &long)])).await), Code::InvalidArgument);
        let size = [("containerd.io/snapshot/max-size", "much")];
        assert_eq!(code(made(prepare("b", "", &size)).await), Code::InvalidArgument);
        let map = [("containerd.io/snapshot/uidmapping", "0:1000:1")];
        assert_eq!(code(made(prepare("b", "", &map)).await), Code::InvalidArgument);

        let done = async |request| service.commit(request).await.map(drop);
        done(commit("base", "a", "")).await.unwrap();
        assert_eq!(code(done(commit("base", "a", "")).await), Code::NotFound);
        assert_eq!(code(done(commit("other", "base", "")).await), Code::FailedPrecondition);
        let mounts = MountsRequest { key: "base".into(), ..MountsRequest::default() };
        assert_eq!(code(service.mounts(Request::new(mounts)).await.map(drop)), Code::FailedPrecondition);
        made(prepare("b", "base", &[])).await.unwrap();
        assert_eq!(code(done(commit("base", "b", "")).await), Code::AlreadyExists);
        let remove =
            |key: &str| Request::new(RemoveSnapshotRequest { key: key.into(), ..Default::default() });
        let error = service.remove(remove("base")).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("'b' lies on it"), "{error}");
        assert_eq!(service.remove(remove("nothing")).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(served.names(&[]).await, ["b", "base"]);
        for key in ["b", "base"] {
            service.remove(remove(key)).await.unwrap();
        }
        assert_eq!(served.names(&[]).await, [""; 0]);
    });
}

#[test]
fn loop_the_label_max_size_limits_a_snapshot_where_the_driver_can() {
    let scratch = match Scratch::new(Kind::Btrfs) {
        Ok(scratch) => scratch,
        Err(error) => vellum_testkit::skip!("{error}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let served = Served::new(tempfile::tempdir_in(scratch.path()).unwrap(), "btrfs");
        for (key, size) in [("limited", Some("20Mi")), ("unlimited", None)] {
            let labels: Vec<_> =
                size.map(|size| ("containerd.io/snapshot/max-size", size)).into_iter().collect();
            let made = served.service.prepare(prepare(key, "", &labels)).await.unwrap().into_inner();
            let written = std::fs::write(Path::new(&made.mounts[0].source).join("file"), vec![1; 30 << 20]);
            let full = written.is_err_and(|error| error.kind() == std::io::ErrorKind::QuotaExceeded);
            assert_eq!(full, size.is_some(), "{key}");
        }
    });
    scratch.close().unwrap();
}

#[test]
fn root_labels_are_kept_chosen_by_and_changed_one_by_one() {
    each("root_labels_are_kept_chosen_by_and_changed_one_by_one", async |served| {
        let service = &served.service;
        for number in 0..120 {
            let name = format!("k{number:03}");
            let pair = [("parity", if number % 2 == 0 { "even" } else { "odd" })];
            service.prepare(prepare(&name, "", &pair)).await.unwrap();
        }
        assert_eq!(served.names(&[]).await.len(), 120);
        assert_eq!(served.names(&["labels.parity==even"]).await.len(), 60);
        assert_eq!(served.names(&["name==k007", "name==k008"]).await, ["k007", "k008"]);
        let filters = ListSnapshotsRequest { filters: vec!["==".into()], ..Default::default() };
        assert_eq!(service.list(Request::new(filters)).await.unwrap_err().code(), Code::InvalidArgument);
        let update = async |pairs: &[(&str, &str)], paths: &[&str]| {
            let info = Info { name: "k000".into(), labels: labels(pairs), ..Info::default() };
            let paths = paths.iter().map(|path| (*path).to_owned()).collect();
            let update_mask = Some(prost_types::FieldMask { paths });
            let request = UpdateSnapshotRequest { info: Some(info), update_mask, ..Default::default() };
            service.update(Request::new(request)).await.map(|answer| answer.into_inner().info.unwrap().labels)
        };
        assert_eq!(
            update(&[("x", "1")], &["labels.x"]).await.unwrap(),
            labels(&[("parity", "even"), ("x", "1")])
        );
        assert_eq!(update(&[], &["labels.parity"]).await.unwrap(), labels(&[("x", "1")]));
        assert_eq!(update(&[("y", "2")], &["labels"]).await.unwrap(), labels(&[("y", "2")]));
        assert_eq!(update(&[], &[]).await.unwrap(), labels(&[]));
        assert_eq!(update(&[], &["parent"]).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn root_mapped_owners_are_told_with_the_mounts() {
    each("root_mapped_owners_are_told_with_the_mounts", async |served| {
        let map = [
            ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
            ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
        ];
        let mounts = served.service.prepare(prepare("a", "", &map)).await.unwrap().into_inner().mounts;
        let wanted = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];
        assert!(wanted.iter().all(|want| mounts[0].options.iter().any(|o| o == want)), "{mounts:?}");
        let request = MountsRequest { key: "a".into(), ..MountsRequest::default() };
        let again = served.service.mounts(Request::new(request)).await.unwrap().into_inner().mounts;
        assert_eq!(again, mounts);

        // containerd clones the folder that all lower layers lie in, and mounts from there: no link may lead out of it.
        let mut parent = String::new();
        for name in ["first", "second"] {
            served.service.prepare(prepare("x", &parent, &[])).await.unwrap();
            served.service.commit(commit(name, "x", "")).await.unwrap();
            name.clone_into(&mut parent);
        }
        let mounts = served.service.prepare(prepare("b", &parent, &map)).await.unwrap().into_inner().mounts;
        let lowers = mounts[0].options.iter().find_map(|o| o.strip_prefix("lowerdir=")).unwrap_or_default();
        for lower in lowers.split(':').filter(|lower| !lower.is_empty()) {
            assert_eq!(std::fs::canonicalize(lower).unwrap(), Path::new(lower), "{mounts:?}");
        }
    });
}

/// As mount(8) does it, which says with the options what containerd says.
fn mount_at(mount: &super::ApiMount, target: &Path) -> std::process::Output {
    std::fs::create_dir_all(target).unwrap();
    let mut command = std::process::Command::new("mount");
    command.args(["-i", "-t", &mount.r#type, "-o", &mount.options.join(","), &mount.source]).arg(target);
    command.output().unwrap()
}

/// What a container of a user namespace sees: owners mapped by the server, for nobody else can map what has data-only layers.
#[test]
fn root_owners_of_flattened_images_are_mapped_by_the_server() {
    flattened("root_owners_of_flattened_images_are_mapped_by_the_server", "overlay", |_| Ok(()));
}

/// There nobody but the server mounts them.
#[test]
fn root_flattened_images_are_handed_out_on_older_kernels() {
    let forget = vellum_testkit::older::forget_newer;
    flattened("root_flattened_images_are_handed_out_on_older_kernels", "bind", forget);
}

/// Snapshots with and without mapped owners, on a store whose driver's home `prepare_home` has changed; handed out as mounts of type `expected` or, on an older kernel, as bind mounts.
fn flattened(name: &str, expected: &str, prepare_home: fn(&Path) -> std::io::Result<()>) {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        return vellum_testkit::skip::record(name, "the drivers need root");
    }
    let scratch = match Scratch::new(Kind::Xfs) {
        Ok(scratch) => scratch,
        Err(reason) => return vellum_testkit::skip::record(name, &reason.to_string()),
    };
    let dir = tempfile::tempdir_in(scratch.path()).unwrap();
    drop(Store::open(&options(dir.path(), "composefs")).unwrap());
    prepare_home(&dir.path().join("root/composefs")).unwrap();
    let served = Served::new(dir, "composefs");
    let map = [
        ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let target = served.dir.path().join("target");
    let content = vec![7; 100_000];
    runtime.block_on(async {
        let service = &served.service;
        let mounts = service.prepare(prepare("u", "", &[])).await.unwrap().into_inner().mounts;
        let out = mount_at(&mounts[0], &target);
        assert!(out.status.success(), "{mounts:?}: {out:?}");
        std::fs::write(target.join("file"), &content).unwrap();
        std::os::unix::fs::chown(target.join("file"), Some(5), Some(6)).unwrap();
        vellum_sys::mount::unmount(&target, false).unwrap();
        service.commit(commit("base", "u", "")).await.unwrap();

        let mounts = service.prepare(prepare("box", "base", &map)).await.unwrap().into_inner().mounts;
        assert!(!mounts[0].options.iter().any(|option| option.starts_with("uidmap=")), "{mounts:?}");
        let request = || Request::new(MountsRequest { key: "box".into(), ..MountsRequest::default() });
        assert_eq!(service.mounts(request()).await.unwrap().into_inner().mounts, mounts);
        // One of another mapping, and one of none, beside it.
        let other = [
            ("containerd.io/snapshot/uidmapping", "0:300000:9"),
            ("containerd.io/snapshot/gidmapping", "0:300000:9"),
        ];
        for (key, map, wanted) in [("other", &other[..], (300_005, 300_006)), ("plain", &[][..], (5, 6))] {
            let mounts = service.prepare(prepare(key, "base", map)).await.unwrap().into_inner().mounts;
            assert!([expected, "bind"].contains(&mounts[0].r#type.as_str()), "{mounts:?}");
            let out = mount_at(&mounts[0], &target);
            assert!(out.status.success(), "{key}: {mounts:?}: {out:?}");
            let facts = std::fs::metadata(target.join("file")).unwrap();
            assert_eq!((facts.uid(), facts.gid()), wanted, "{key}");
            vellum_sys::mount::unmount(&target, false).unwrap();
        }
        let out = mount_at(&mounts[0], &target);
        assert!(out.status.success(), "{mounts:?}: {out:?}");
        let owner = |path: &Path| {
            let facts = std::fs::metadata(path).unwrap();
            (facts.uid(), facts.gid())
        };
        assert_eq!(owner(&target), (100_000, 200_000));
        assert_eq!(owner(&target.join("file")), (100_005, 200_006));
        assert!(std::fs::read(target.join("file")).unwrap() == content);
        // A first write keeps the owner that is seen.
        let mut file = std::fs::File::options().append(true).open(target.join("file")).unwrap();
        std::io::Write::write_all(&mut file, b"more").unwrap();
        drop(file);
        assert_eq!(owner(&target.join("file")), (100_005, 200_006));
        vellum_sys::mount::unmount(&target, false).unwrap();

        // A file of which nothing but the owner changes keeps its content in what is made of it.
        let request = MountsRequest { key: "plain".into(), ..MountsRequest::default() };
        let mounts = service.mounts(Request::new(request)).await.unwrap().into_inner().mounts;
        assert!(mount_at(&mounts[0], &target).status.success(), "{mounts:?}");
        std::os::unix::fs::chown(target.join("file"), Some(7), Some(8)).unwrap();
        vellum_sys::mount::unmount(&target, false).unwrap();
        service.commit(commit("next", "plain", "base")).await.unwrap();
        let mounts = service.prepare(prepare("look", "next", &[])).await.unwrap().into_inner().mounts;
        assert!(mount_at(&mounts[0], &target).status.success(), "{mounts:?}");
        assert_eq!(owner(&target.join("file")), (7, 8));
        assert!(std::fs::read(target.join("file")).unwrap() == content);
        vellum_sys::mount::unmount(&target, false).unwrap();
        for key in ["box", "other", "look", "next", "base"] {
            let request = RemoveSnapshotRequest { key: key.into(), ..RemoveSnapshotRequest::default() };
            service.remove(Request::new(request)).await.unwrap();
        }
        let left = vellum_testkit::scratch::mounts_below(&served.options.runtime.clone().unwrap()).unwrap();
        assert!(left.is_empty(), "{left:?}");
    });
}

/// What containerd's mount package does before mount(2), which takes one page of options: lower layers become relative to the folder that all are in.
fn shortened(mount: &super::ApiMount) -> (String, String) {
    let options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
    let lowers: Vec<&str> =
        options.iter().find_map(|o| o.strip_prefix("lowerdir=")).unwrap().split(':').collect();
    let folder = Path::new(lowers[0]).parent().unwrap();
    let names: Vec<&str> =
        lowers.iter().map(|lower| Path::new(lower).strip_prefix(folder).unwrap().to_str().unwrap()).collect();
    let rest = options.into_iter().filter(|option| !option.starts_with("lowerdir="));
    let lowers = format!("lowerdir={}", names.join(":"));
    (folder.display().to_string(), [lowers.as_str()].into_iter().chain(rest).collect::<Vec<_>>().join(","))
}

#[test]
fn root_a_snapshot_of_499_layers_fits_the_page_that_containerd_has_for_it() {
    let name = "root_a_snapshot_of_499_layers_fits_the_page_that_containerd_has_for_it";
    if !rustix::process::geteuid().is_root() {
        return vellum_testkit::skip::record(name, "the drivers need root");
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = options(dir.path(), "overlay");
    let store = Store::open(&options).unwrap();
    if store.capabilities().limit(vellum_driver::Ability::MaxLayers) < Some(499) {
        return vellum_testkit::skip::record(name, "this kernel's overlayfs takes fewer layers");
    }
    let snapshots = store.snapshots("containerd/vellum");
    let mut parent: Option<String> = None;
    for number in 0..499 {
        snapshots.prepare("x", parent.as_deref(), &BTreeMap::new()).unwrap();
        let committed = format!("c{number}");
        snapshots.commit(&committed, "x", None, &BTreeMap::new()).unwrap();
        parent = Some(committed);
    }
    snapshots.prepare("box", parent.as_deref(), &BTreeMap::new()).unwrap();
    let mounts = super::handing::mounts(snapshots.hand_out(&snapshots.stat("box").unwrap(), None).unwrap());
    let (folder, options_text) = shortened(&mounts[0]);
    assert!(options_text.len() < 4096, "{} bytes", options_text.len());
    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-i", "-t", "overlay", "-o", &options_text, "overlay"])
        .arg(&target)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(mounted.status.success(), "{mounted:?}");
    std::fs::write(target.join("new"), "new").unwrap();
    vellum_sys::mount::unmount(&target, false).unwrap();
    drop(store);
    Store::reset(&options).unwrap();
}
