//! What tests and benchmarks need of the machine.

use crate::run::{Error, has, run};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

/// A program, or a file by its whole path, and the Debian package that brings it.
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
}

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// For the tests.
pub(crate) const TEST: &[Need] = &[
    need("debootstrap", "debootstrap"),
    need("umoci", "umoci"),
    need("skopeo", "skopeo"),
    need("mkfs.xfs", "xfsprogs"),
    need("mkfs.btrfs", "btrfs-progs"),
    need("mkfs.erofs", "erofs-utils"),
    need("newuidmap", "uidmap"),
    need("setfattr", "attr"),
    need("setfacl", "acl"),
    need("setcap", "libcap2-bin"),
    need("setpriv", "util-linux"),
    need("openssl", "openssl"),
    need("python3", "python3"),
    need("zstd", "zstd"),
    need("containerd", "containerd"),
    need("runc", "runc"),
    need("/usr/share/doc/busybox-static/copyright", "busybox-static"),
    need("go", "golang-any"),
    need(
        "/usr/share/gocode/src/github.com/containerd/containerd/snapshots/testsuite/testsuite.go",
        "golang-github-containerd-containerd-dev",
    ),
    need(
        "/usr/share/gocode/src/github.com/docker/docker/daemon/graphdriver/graphtest/testutil.go",
        "golang-github-docker-docker-dev",
    ),
    need(
        "/usr/share/gocode/src/github.com/vbatts/tar-split/tar/storage/doc.go",
        "golang-github-vbatts-tar-split-dev",
    ),
    need(
        "/usr/share/gocode/src/gotest.tools/assert/assert.go",
        "golang-github-gotestyourself-gotest.tools-dev",
    ),
    need("/usr/sbin/dockerd", "docker.io"),
    need("busybox", "busybox-static"),
];

/// For the benchmark, beside those for the tests.
pub(crate) const BENCH: &[Need] = &[need("pigz", "pigz"), need("podman", "podman")];

/// For the throwaway machine, beside those for the tests.
pub(crate) const VM: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86"),
    need("busybox", "busybox-static"),
    need("mkfs.xfs", "xfsprogs"),
    need("mkfs.btrfs", "btrfs-progs"),
    need("mkfs.erofs", "erofs-utils"),
    need("setpriv", "util-linux"),
    need("strip", "binutils"),
    need("xz", "xz-utils"),
];

/// Installs what is missing where that is possible: as root, with apt. Says what is still missing then; what needs it
/// is skipped and counted.
pub(crate) fn install(needs: &[Need]) -> Result<(), Error> {
    let missing = || needs.iter().filter(|need| !has(need.program)).collect::<Vec<_>>();
    if missing().is_empty() {
        return Ok(());
    }
    if is_root() && has("apt-get") {
        let packages: Vec<&str> = missing().iter().map(|need| need.package).collect();
        eprintln!("installing {}", packages.join(" "));
        let _no_services = NoServices::declare()?;
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            run(command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(arguments))
        };
        // A repository of somebody else's that is out of reach is no reason to give up: the install tells.
        let _ = apt(&["update"]);
        let install = |packages: &[&str]| {
            apt(&[&["install", "--yes", "--no-install-recommends"][..], packages].concat())
        };
        if install(&packages).is_err() && packages.len() > 1 {
            // One package that this release of the distribution has not would keep all the others away.
            for need in missing() {
                if let Err(error) = install(&[need.package]) {
                    eprintln!("warning: {error}");
                }
            }
        }
    }
    for need in missing() {
        eprintln!("missing: {} (package {}); what needs it is skipped", need.program, need.package);
    }
    Ok(())
}

/// While this is there, packages' services are not started when they are installed: tests start what they need themselves.
struct NoServices(Option<&'static Path>);

impl NoServices {
    fn declare() -> Result<Self, Error> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        let file = std::fs::File::options().write(true).create_new(true).mode(0o755).open(path);
        match file.and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n")) {
            Ok(()) => Ok(Self(Some(path))),
            // The administrator's own policy stands.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(Error::at(format!("write {}", path.display()))(error)),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether this process is the superuser.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
