//! A store's folders for one test, overlay plans, and children of the test binary.
#![allow(dead_code, reason = "not every test file uses everything")]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use vellum_driver::{Mount, MountOption, MountPlan, MountSource, PathRef};
use vellum_mount::Mounter;
use vellum_types::LayerId;

/// Says that a test could not run here, and why.
#[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
pub(crate) fn skip(name: &str, reason: impl std::fmt::Display) {
    println!("SKIP {name}: {reason}");
}

/// Whether this is root of the machine; if not, says that the test is skipped.
pub(crate) fn root(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(name, "needs root");
    }
    root
}

pub(crate) fn id(number: u32) -> LayerId {
    LayerId::new(number).expect("a small positive number")
}

/// A runtime folder, a folder of mountpoints and layers; all mounts in it are gone when it is dropped.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub(crate) fn below(base: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("vellum-mount-test").tempdir_in(base).expect("a folder");
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn mounter(&self) -> Mounter {
        mounter_in(self.path())
    }

    /// The mounts below this place.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let root = self.path().canonicalize().expect("the place exists");
        let mut points: Vec<_> = vellum_sys::mountinfo::below(&root)
            .expect("a mount table")
            .into_iter()
            .map(|m| m.point)
            .collect();
        points.sort();
        points
    }

    /// The names in one of the mounter's folders.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path().join(folder)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    /// That nothing is mounted, recorded or left.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.mounts(), Vec::<PathBuf>::new(), "mounts");
        for folder in ["run/mounts", "run/steps", "run/shared", "run/views", "mnt"] {
            assert_eq!(self.names(folder), Vec::<String>::new(), "{folder}");
        }
    }

    /// `count` lower folders with one file each, named after the folder, and one that all have.
    pub(crate) fn lowers(&self, count: usize) -> Vec<PathBuf> {
        (0..count).map(|number| self.lower(&format!("l{number}"))).collect()
    }

    pub(crate) fn lower(&self, name: &str) -> PathBuf {
        let path = self.path().join("layers").join(name);
        std::fs::create_dir_all(&path).expect("a lower folder");
        let base = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
        std::fs::write(path.join(base), "x").expect("a file");
        std::fs::write(path.join("all"), name).expect("a file");
        path
    }

    /// A writable overlay over these.
    pub(crate) fn overlay(&self, name: &str, lowers: &[PathBuf]) -> MountPlan {
        let folder = |part: &str| {
            let path = self.path().join("layers").join(name).join(part);
            std::fs::create_dir_all(&path).expect("a folder");
            path
        };
        let mut plan = overlay_of(lowers.iter().cloned().map(PathRef::Host));
        plan.root.options.push(MountOption::Path("upperdir".into(), PathRef::Host(folder("diff"))));
        plan.root.options.push(MountOption::Path("workdir".into(), PathRef::Host(folder("work"))));
        plan
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for point in self.mounts().iter().rev() {
            let _ = vellum_sys::mount::unmount(point, true);
        }
    }
}

pub(crate) fn mounter_in(path: &Path) -> Mounter {
    Mounter::new(path.join("run"), path.join("mnt")).expect("a mounter")
}

/// An overlay of lower layers only.
pub(crate) fn overlay_of(lowers: impl IntoIterator<Item = PathRef>) -> MountPlan {
    MountPlan::of(Mount {
        fs_type: "overlay".into(),
        source: MountSource::Name("overlay".into()),
        options: lowers.into_iter().map(|path| MountOption::Path("lowerdir+".into(), path)).collect(),
        read_only: false,
    })
}

const TASK: &str = "VELLUM_MOUNT_TEST_TASK";
const PLACE: &str = "VELLUM_MOUNT_TEST_PLACE";

/// Starts this test binary again, to run the test `child` with a task.
pub(crate) fn start(place: &Place, task: &str, fault: Option<&str>, wrapper: &[&str]) -> Child {
    let exe = std::env::current_exe().expect("this binary");
    let mut command = match wrapper {
        [] => Command::new(exe),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(exe);
            command
        }
    };
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env(PLACE, place.path());
    command.env_remove(vellum_sys::fault::VARIABLE);
    if let Some(fault) = fault {
        command.env(vellum_sys::fault::VARIABLE, fault);
    }
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.spawn().expect("a child")
}

/// The task and the place of this process, if it is a child.
pub(crate) fn task() -> Option<(String, PathBuf)> {
    Some((std::env::var(TASK).ok()?, PathBuf::from(std::env::var_os(PLACE)?)))
}

/// Waits for a child; true if it was killed by its fault point, false if it ended well.
pub(crate) fn was_killed(child: Child) -> bool {
    let output = child.wait_with_output().expect("a child");
    if output.status.signal() == Some(9) {
        return true;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}
