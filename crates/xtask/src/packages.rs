//! What tests and benchmarks need of the machine.

use crate::run::{Error, has, run};
use std::process::Command;

/// A program and the Debian package that brings it.
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
];

/// For the benchmark, beside those for the tests.
pub(crate) const BENCH: &[Need] =
    &[need("pigz", "pigz"), need("podman", "podman"), need("containerd", "containerd")];

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

/// Whether this process is the superuser.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
