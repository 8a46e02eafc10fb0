//! The conformance suite on every driver and every file system.
//!
//! The drivers' crates do not depend on each other, nor on this one; here they meet. As root each driver runs on the machine's
//! own file system, on ext4, XFS with reflink and btrfs in loop files, and on tmpfs; without root on the machine's own, inside a user
//! namespace, with one id and with a range of them. `VELLUM_TEST_CASE=name` runs one case only.

// What a run did is shown when a test is asked for it.
#![allow(clippy::print_stdout)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use vellum_archive::XattrForm;
use vellum_driver::{Driver, DriverConfig, Factory, Probe, ProbeEnvironment};
use vellum_mount::Mounter;
use vellum_testkit::conformance::{Case, Subject, run};
use vellum_testkit::scratch::{Kind, Scratch, Unavailable, unmount_below};
use vellum_testkit::skip;

/// Set in a child that is inside a user namespace.
const INSIDE: &str = "VELLUM_TEST_ROOTLESS";

fn chosen(case: &Case) -> bool {
    std::env::var("VELLUM_TEST_CASE").map_or(true, |name| name == case.name)
}

fn conforms(factory: &dyn Factory, config: DriverConfig, folder: &std::path::Path) {
    let report = run(&Subject::new(factory, config), folder, chosen);
    assert!(report.failed.is_empty(), "{} in {}: {report}", factory.name(), folder.display());
    println!("{} in {}: {report}", factory.name(), folder.display());
}

fn as_root(factory: &dyn Factory, kind: Kind) {
    if !rustix::process::geteuid().is_root() {
        skip!("mounting needs root");
    }
    let scratch = match Scratch::new(kind) {
        Ok(scratch) => scratch,
        Err(Unavailable::Missing(reason)) => skip!("{reason}"),
        Err(error) => panic!("{error}"),
    };
    on(factory, scratch);
}

fn on(factory: &dyn Factory, scratch: Scratch) {
    let kind = scratch.kind();
    let probe = factory.probe(&ProbeEnvironment { root: scratch.path(), rootless: false });
    assert!(probe.usable, "{} must work on {kind}: {}", factory.name(), probe.reason);
    conforms(
        factory,
        DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true },
        scratch.path(),
    );
    scratch.close().unwrap_or_else(|error| panic!("{error}"));
}

/// Runs the test of this name once more, as a user without privileges, root of a user namespace. As root with a range of
/// ids, else with the user's own one.
fn rootless(factory: &dyn Factory, test: &str, range: bool) {
    if std::env::var_os(INSIDE).is_some() {
        let folder = std::env::temp_dir();
        let probe = factory.probe(&ProbeEnvironment { root: &folder, rootless: true });
        assert!(probe.usable, "{} must work rootless: {}", factory.name(), probe.reason);
        return conforms(
            factory,
            DriverConfig { xattrs: XattrForm::User, rootless: true, verity: true },
            &folder,
        );
    }
    if !rustix::process::geteuid().is_root() {
        skip!("becoming another user needs root");
    }
    let scratch = Scratch::new(Kind::Here).unwrap_or_else(|error| panic!("{error}"));
    // A copy that any user may execute, wherever cargo built it.
    let copy = scratch.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let work = scratch.folder("work").unwrap();
    std::os::unix::fs::chown(&work, Some(USER), Some(USER)).unwrap();
    let user = USER.to_string();
    let (mut command, _holder) = if range {
        let holder = match Holder::new() {
            Ok(holder) => holder,
            Err(error) => skip!("this machine makes no user namespace: {error}"),
        };
        let mut command = Command::new("nsenter");
        command.args([
            "--user",
            "--mount",
            "--setuid=0",
            "--setgid=0",
            "--target",
            &holder.0.id().to_string(),
        ]);
        (command, Some(holder))
    } else {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.args(["unshare", "--user", "--map-root-user", "--mount"]);
        (command, None)
    };
    command.arg(&copy).args(["--exact", test, "--nocapture"]);
    command.env(INSIDE, "1").env("TMPDIR", &work).env("HOME", &work).current_dir(&work);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let _ = unmount_below(&work);
    if said.contains("unshare: unshare failed") {
        skip!("this machine does not let users make namespaces: {}", said.trim());
    }
    assert!(output.status.success(), "{said}");
    println!("{said}");
}

/// A process that keeps namespaces with a range of ids, which root maps as the set-user-ID helpers do for a user.
struct Holder(Child);

impl Holder {
    fn new() -> std::io::Result<Self> {
        let sleep = ["--user", "--mount", "sh", "-c", "echo made && exec sleep 3600"];
        let mut child = Command::new("unshare").args(sleep).stdout(Stdio::piped()).spawn()?;
        let mut made = String::new();
        if let Some(pipe) = child.stdout.take() {
            BufReader::new(pipe).read_line(&mut made)?;
        }
        let holder = Self(child);
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", holder.0.id()), format!("0 {USER} 65536\n"))?;
        }
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nobody's number, and the first of a range that no account of a test machine has.
const USER: u32 = 700_000;

macro_rules! conformance {
    ($driver:ident, $factory:expr) => {
        mod $driver {
            use super::*;

            #[test]
            fn root_here() {
                as_root(&$factory, Kind::Here);
            }

            #[test]
            fn loop_ext4() {
                as_root(&$factory, Kind::Ext4);
            }

            #[test]
            fn loop_xfs() {
                as_root(&$factory, Kind::Xfs);
            }

            #[test]
            fn loop_btrfs() {
                as_root(&$factory, Kind::Btrfs);
            }

            #[test]
            fn root_tmpfs() {
                as_root(&$factory, Kind::Tmpfs);
            }

            #[test]
            fn rootless_one_id() {
                rootless(&$factory, concat!(stringify!($driver), "::rootless_one_id"), false);
            }

            #[test]
            fn rootless_range() {
                rootless(&$factory, concat!(stringify!($driver), "::rootless_range"), true);
            }
        }
    };
}

conformance!(vfs, vellum_driver_vfs::FACTORY);
conformance!(overlay, vellum_driver_overlay::FACTORY);

mod composefs {
    use super::*;

    #[test]
    fn root_here() {
        as_root(&vellum_driver_composefs::FACTORY, Kind::Here);
    }

    #[test]
    fn loop_ext4() {
        as_root(&vellum_driver_composefs::FACTORY, Kind::Ext4);
    }

    #[test]
    fn loop_xfs() {
        as_root(&vellum_driver_composefs::FACTORY, Kind::Xfs);
    }

    #[test]
    fn loop_btrfs() {
        as_root(&vellum_driver_composefs::FACTORY, Kind::Btrfs);
    }

    /// Opened as on a kernel before 6.12, whatever this one is.
    struct Older;

    impl Factory for Older {
        fn name(&self) -> &'static str {
            vellum_driver_composefs::FACTORY.name()
        }

        fn summary(&self) -> &'static str {
            vellum_driver_composefs::FACTORY.summary()
        }

        fn probe(&self, environment: &ProbeEnvironment<'_>) -> Probe {
            vellum_driver_composefs::FACTORY.probe(environment)
        }

        fn open(&self, home: &Path, config: DriverConfig) -> vellum_driver::Result<Box<dyn Driver>> {
            drop(vellum_driver_composefs::FACTORY.open(home, config)?);
            vellum_testkit::older::forget_newer(home)
                .map_err(|error| vellum_driver::Error::system("forget what this kernel can", error))?;
            vellum_driver_composefs::FACTORY.open(home, config)
        }
    }

    /// What mounts and views bear on most; all cases take a minute.
    fn brief(case: &str) -> bool {
        const OTHERS: [&str; 4] = ["lower_stays", "programs_run", "usage_counts", "written_is_there"];
        case.starts_with("claims_") || case.starts_with("copy_") || OTHERS.contains(&case)
    }

    /// In memory, where nothing waits for a disk.
    #[test]
    fn root_tmpfs_as_on_older_kernels() {
        if !rustix::process::geteuid().is_root() {
            skip!("mounting needs root");
        }
        let scratch = match Scratch::new(Kind::Tmpfs) {
            Ok(scratch) => scratch,
            Err(error) => skip!("{error}"),
        };
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let all = std::env::var_os("VELLUM_TEST_ALL").is_some();
        for mounted in [Mounter::with_places, Mounter::in_one_page] {
            let subject = Subject::new(&Older, config).mounted(mounted);
            let report = run(&subject, scratch.path(), |case| chosen(case) && (all || brief(case.name)));
            assert!(report.failed.is_empty(), "{report}");
            println!("{report}");
        }
        scratch.close().unwrap_or_else(|error| panic!("{error}"));
    }

    /// With objects that the kernel verifies, where it can: in the machine of `cargo xtask vm`.
    fn sealed(kind: Kind, options: &[&str]) {
        let factory = &vellum_driver_composefs::FACTORY;
        let scratch = match Scratch::made_with(kind, Scratch::SIZE_MIB, options) {
            Ok(scratch) => scratch,
            Err(error) => skip!("{error}"),
        };
        let probe = factory.probe(&ProbeEnvironment { root: scratch.path(), rootless: false });
        match probe.facts.iter().find(|(name, _)| name == "fs-verity") {
            Some((_, fact)) if !fact.starts_with("no: ") => on(factory, scratch),
            Some((_, fact)) => skip!("no fs-verity on {kind}: {}", fact.trim_start_matches("no: ")),
            None => skip!("{}", probe.reason),
        }
    }

    #[test]
    fn vm_sealed_ext4() {
        sealed(Kind::Ext4, &["-O", "verity"]);
    }

    #[test]
    fn vm_sealed_btrfs() {
        sealed(Kind::Btrfs, &[]);
    }
}

/// Layers with a size on XFS, where the kernel has project quotas: in the machine of `cargo xtask vm`.
mod sizes {
    use super::*;
    use vellum_driver::Ability;

    fn kept(factory: &dyn Factory) {
        if !rustix::process::geteuid().is_root() {
            skip!("mounting needs root");
        }
        let scratch = match Scratch::new(Kind::Xfs) {
            Ok(scratch) => scratch,
            Err(error) => skip!("{error}"),
        };
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let opened = factory.open(&scratch.path().join("look"), config).unwrap();
        if !opened.capabilities().has(Ability::Quota) {
            skip!("this kernel's XFS has no quotas");
        }
        let of_sizes = |case: &Case| chosen(case) && case.name.starts_with("claims_quota");
        let report = run(&Subject::new(factory, config), scratch.path(), of_sizes);
        assert!(report.failed.is_empty(), "{report}");
        println!("{}: {report}", factory.name());
        scratch.close().unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn vm_overlay_on_xfs() {
        kept(&vellum_driver_overlay::FACTORY);
    }

    #[test]
    fn vm_composefs_on_xfs() {
        kept(&vellum_driver_composefs::FACTORY);
    }
}

mod btrfs {
    use super::*;

    #[test]
    fn loop_btrfs() {
        as_root(&vellum_driver_btrfs::FACTORY, Kind::Btrfs);
    }

    #[test]
    fn loop_other_file_systems_are_refused_with_the_reason() {
        if !rustix::process::geteuid().is_root() {
            skip!("loop devices need root");
        }
        let scratch = Scratch::new(Kind::Ext4).unwrap_or_else(|error| panic!("{error}"));
        let factory = vellum_driver_btrfs::FACTORY;
        let probe = factory.probe(&ProbeEnvironment { root: scratch.path(), rootless: false });
        assert!(!probe.usable && probe.reason.contains("ext4") && probe.hint.is_some(), "{probe:?}");
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let refused = factory.open(&scratch.path().join("home"), config).unwrap_err();
        assert_eq!(refused.kind, vellum_driver::ErrorKind::Unsupported);
        scratch.close().unwrap_or_else(|error| panic!("{error}"));
    }
}
