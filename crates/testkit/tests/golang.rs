//! Go programs are built out of Debian's packages, and containerd's suite passes on containerd's own snapshotter: it can tell.
#![allow(missing_docs)]

use std::path::Path;
use std::process::Command;
use vellum_testkit::golang::{self, Form};
use vellum_testkit::skip;

const OUT: &str = env!("CARGO_TARGET_TMPDIR");

#[test]
fn root_containerds_suite_runs_over_a_socket() {
    if !rustix::process::geteuid().is_root() {
        skip!("needs root");
    }
    let needs =
        ("github.com/containerd/containerd/snapshots/testsuite", "golang-github-containerd-containerd-dev");
    if let Some(reason) = golang::missing(needs.0, needs.1) {
        skip!("{reason}");
    }
    let peer = golang::build("peer", Form::Program, Path::new(OUT)).unwrap();
    let suite = golang::build("snapshotter", Form::Tests, Path::new(OUT)).unwrap();
    let server = format!("{} serve ROOT SOCKET", peer.display());
    let run = |tests: &str| {
        let mut command = Command::new(&suite);
        command.args(["-test.v", "-test.run", tests]).env("VELLUM_TEST_SERVER", &server);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (passed, said) = run("TestSuite");
    assert!(passed, "{said}");
    assert!(said.contains("--- PASS: TestSuite/128LayersMount"), "{said}");
    // What overlayfs as containerd mounts it cannot do is seen, unless the kernel does it unasked.
    let unasked = std::fs::read_to_string("/sys/module/overlay/parameters/redirect_dir").unwrap_or_default();
    let (passed, said) = run("TestRename");
    assert!(unasked.trim() == "Y" || !passed && said.contains("invalid cross-device link"), "{said}");
}
