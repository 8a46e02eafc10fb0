//! Real peers of `serve containerd`: containerd's own suite for snapshotters, and containerd itself with runc.
//!
//! What needs another containerd than this machine's, and what takes long, runs with `cargo xtask test --all`.

mod common;

use common::{DRIVERS, Store, drivers, has, is_root};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vellum_testkit::golang::{self, Form};
use vellum_testkit::{engine, skip};

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
}

impl Place {
    fn new() -> Self {
        // The path becomes part of sockets' paths, which are short.
        let dir = tempfile::Builder::new().prefix("ve-").tempdir().unwrap();
        engine::shell_image(&dir.path().join("image")).unwrap();
        let tar = Command::new("tar")
            .args(["-cf", "image.tar", "-C", "image", "."])
            .current_dir(dir.path())
            .status();
        assert!(tar.unwrap().success());
        Self { dir }
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
