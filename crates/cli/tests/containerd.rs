//! Real peers of `serve containerd`: containerd's own suite for snapshotters, and containerd itself with runc.
//!
//! What needs another containerd than this machine's, and what takes long, runs with `cargo xtask test --all`.

mod common;

use common::{DRIVERS, Store, drivers, has, is_root};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vellum_testkit::golang::{self, Form};
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::{engine, image, older, skip};

const VELLUM: &str = env!("CARGO_BIN_EXE_vellum");
const OUT: &str = env!("CARGO_TARGET_TMPDIR");
const SUITE: [&str; 2] =
    ["github.com/containerd/containerd/snapshots/testsuite", "golang-github-containerd-containerd-dev"];

/// Whether this run is the long one.
fn all() -> bool {
    std::env::var_os("VELLUM_TEST_ALL").is_some()
}

/// Why no container can be run on this machine, if so.
fn refused() -> Option<String> {
    if !is_root() {
        return Some("needs root".into());
    }
    let missing = ["containerd", "runc"].into_iter().find(|tool| !has(tool));
    missing.map(|tool| format!("{tool} is not installed")).or_else(engine::no_shell)
}

/// A folder for an engine, with an archive of the image that its containers have.
struct Place {
    dir: tempfile::TempDir,
    /// A file system of its own, for a driver that does not work on the machine's.
    _scratch: Option<Scratch>,
}

impl Place {
    fn new() -> Self {
        Self::on(DRIVERS[0])
    }

    /// On a file system that the driver can use.
    fn on(driver: &str) -> Self {
        let this = Self::empty(driver);
        engine::shell_image(&this.dir.path().join("image")).unwrap();
        this.pack("image");
        this
    }

    /// Makes an archive of a layout in the folder.
    fn pack(&self, layout: &str) -> String {
        let archive = self.dir.path().join(format!("{layout}.tar"));
        let mut tar = Command::new("tar");
        run(tar.arg("-cf").arg(&archive).args(["-C", layout, "."]).current_dir(self.dir.path()));
        archive.to_str().unwrap().to_owned()
    }

    /// Without an image, on a file system that the driver can use.
    fn empty(driver: &str) -> Self {
        let scratch = (driver == "btrfs").then(|| Scratch::new(Kind::Btrfs).unwrap());
        let place = scratch.as_ref().map_or(std::env::temp_dir(), |scratch| scratch.path().to_owned());
        // The path becomes part of sockets' paths, which are short.
        let dir = tempfile::Builder::new().prefix("ve-").tempdir_in(place).unwrap();
        Self { dir, _scratch: scratch }
    }

    /// With an image that one of the engines' Python scripts writes; its arguments end with the image's file and name.
    fn written_by(driver: &str, script: &str, arguments: &[&Path]) -> Self {
        let this = Self::empty(driver);
        let mut python = Command::new("python3");
        python.arg(engine::scripts().join(script)).args(arguments);
        run(python.arg(this.image()).arg(engine::IMAGE));
        this
    }

    /// A Go program where an engine in a system of its own reaches it.
    fn program(&self, name: &str) -> String {
        let built = golang::build(name, Form::Program, Path::new(OUT)).unwrap();
        let copy = self.dir.path().join(name);
        run(Command::new("cp").arg(built).arg(&copy));
        copy.to_str().unwrap().to_owned()
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image.tar")
    }

    /// Runs a script of the engines, which must succeed.
    fn script(&self, root: &Path, driver: &str, name: &str, arguments: &[&str]) {
        let mut command = engine::script(root, self.dir.path(), Path::new(VELLUM), driver, name);
        let output = command.arg(self.image()).args(arguments).stderr(Stdio::piped()).output().unwrap();
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{name} with {driver} on {}:\n{said}", root.display());
    }
}

/// Runs a command that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn root_containerds_suite_passes() {
    if !is_root() {
        skip!("needs root");
    }
    if let Some(reason) = golang::missing(SUITE[0], SUITE[1]) {
        skip!("{reason}");
    }
    let suite = golang::build("snapshotter", Form::Tests, Path::new(OUT)).unwrap();
    for driver in drivers("root_containerds_suite_passes") {
        let server = format!("{VELLUM} --root ROOT/store --driver {driver} serve containerd --socket SOCKET");
        let place = Store::new(driver);
        let mut command = Command::new(&suite);
        command.arg("-test.v").env("VELLUM_TEST_SERVER", server).env("TMPDIR", place.dir.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{driver}: {said}");
        let skipped: Vec<&str> = said.lines().filter(|line| line.contains("--- SKIP")).collect();
        // The suite leaves this out for everyone; TestRename is the same and more.
        assert!(skipped.iter().all(|line| line.contains("TestSuite/Rename ")), "{driver}: {skipped:?}");
        for case in ["TestSuite/128LayersMount", "TestSuite/ViewReadonly", "TestRename"] {
            assert!(said.contains(&format!("--- PASS: {case}")), "{driver}: {said}");
        }
    }
}

#[test]
fn root_containers_live_with_containerd() {
    if let Some(reason) = refused() {
        skip!("{reason}");
    }
    for driver in DRIVERS {
        Place::new().script(Path::new("/"), driver, "life.sh", &[]);
    }
}

/// Where containerd is not to mount what the driver makes, and gets a bind mount of it.
#[test]
fn root_containers_live_with_containerd_on_older_kernels() {
    if let Some(reason) = refused() {
        skip!("{reason}");
    }
    let place = Place::new();
    let store = place.dir.path().join("store");
    run(Command::new(VELLUM).arg("--root").arg(&store).args(["--driver", "composefs", "init"]));
    older::forget_newer(&store.join("composefs")).unwrap();
    place.script(Path::new("/"), "composefs", "life.sh", &[]);
}

#[test]
fn root_containers_live_with_later_containerds() {
    if !all() {
        return;
    }
    if let Some(reason) = refused() {
        skip!("{reason}");
    }
    for suite in engine::SYSTEMS {
        let root = match engine::system(suite) {
            Ok(root) => root,
            Err(reason) => skip!("{reason}"),
        };
        for driver in DRIVERS {
            Place::new().script(&root, driver, "life.sh", &[]);
        }
    }
}

#[test]
fn root_containers_live_with_docker() {
    if !all() {
        return;
    }
    if let Some(reason) = refused() {
        skip!("{reason}");
    }
    match engine::system("forky") {
        Ok(root) => {
            DRIVERS.into_iter().for_each(|driver| Place::new().script(&root, driver, "docker.sh", &[]))
        }
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
fn root_a_killed_server_is_no_loss_to_many_clients() {
    if let Some(reason) = refused().or_else(|| golang::missing(SUITE[0], SUITE[1])) {
        skip!("{reason}");
    }
    let churn = golang::build("churn", Form::Program, Path::new(OUT)).unwrap();
    let (containers, kills) = if all() { ("200", "10") } else { ("48", "3") };
    let arguments = [churn.to_str().unwrap(), "16", containers, kills];
    Place::new().script(Path::new("/"), "overlay", "churn.sh", &arguments);
}

/// Why no image can be unpacked by a client of ours, if so.
fn no_client() -> Option<String> {
    let python = (!has("python3")).then(|| "python3 is not installed".into());
    refused().or_else(|| golang::missing(SUITE[0], SUITE[1])).or(python)
}

#[test]
fn root_layers_unpacked_all_at_once_are_joined_to_the_tree_that_containerd_has() {
    if let Some(reason) = no_client() {
        skip!("{reason}");
    }
    for driver in ["composefs", "overlay"] {
        let place = Place::written_by(driver, "layers.py", &[]);
        let rebase = place.program("rebase");
        place.script(Path::new("/"), driver, "rebase.sh", &[&rebase, "committed:2"]);
    }
}

#[test]
fn root_layers_unpacked_all_at_once_are_joined_with_containerd_2() {
    const TEST: &str = "root_layers_unpacked_all_at_once_are_joined_with_containerd_2";
    if !all() {
        return;
    }
    if let Some(reason) = no_client() {
        skip!("{reason}");
    }
    let root = match engine::system("forky") {
        Ok(root) => root,
        Err(reason) => skip!("{reason}"),
    };
    for driver in drivers(TEST) {
        let place = Place::written_by(driver, "layers.py", &[]);
        let rebase = place.program("rebase");
        let events = ["prepared:3", "applied:2", "committed:1", "committed:4"];
        place.script(&root, driver, "rebase.sh", &[&[rebase.as_str()], &events[..]].concat());
    }
    match image::debian() {
        Ok(layout) => {
            for driver in drivers(TEST) {
                let place = Place::written_by(driver, "plain.py", &[&layout]);
                let rebase = place.program("rebase");
                place.script(&root, driver, "rebase.sh", &[&rebase]);
            }
        }
        Err(reason) => skip::record(TEST, &reason),
    }
}

/// A pod's life, asked for as a kubelet does it.
fn pods(root: &Path, driver: &str, more: &[&str]) {
    let place = Place::on(driver);
    engine::pause_image(&place.dir.path().join("pause")).unwrap();
    let (pause, cri) = (place.pack("pause"), place.program("cri"));
    place.script(root, driver, "kubernetes.sh", &[&[pause.as_str(), cri.as_str()], more].concat());
}

#[test]
fn root_pods_live_as_a_kubelet_has_them() {
    if let Some(reason) = refused().or_else(|| golang::missing(SUITE[0], SUITE[1])) {
        skip!("{reason}");
    }
    pods(Path::new("/"), "overlay", &[]);
}

#[test]
fn root_pods_live_with_all_containerds_also_in_user_namespaces() {
    const TEST: &str = "root_pods_live_with_all_containerds_also_in_user_namespaces";
    if !all() {
        return;
    }
    if let Some(reason) = refused().or_else(|| golang::missing(SUITE[0], SUITE[1])) {
        skip!("{reason}");
    }
    for driver in drivers(TEST) {
        pods(Path::new("/"), driver, &[]);
        // Earlier ones know nothing of snapshotters that map owners.
        for (suite, more) in engine::SYSTEMS.into_iter().zip([&[][..], &["users"]]) {
            match engine::system(suite) {
                Ok(root) => pods(&root, driver, more),
                Err(reason) => skip::record(TEST, &reason),
            }
        }
    }
}
