//! The built command, with stores that go away.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "every test binary uses some of it")]

pub mod plugin;
pub mod user;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use vellum_testkit::scratch::{Kind, Scratch};

/// The drivers that work on any file system.
pub const DRIVERS: [&str; 3] = ["composefs", "overlay", "vfs"];

/// The drivers that a test of a store is run with: all that work here, each on a file system that it can use.
pub fn drivers(test: &str) -> Vec<&'static str> {
    let mut drivers = DRIVERS.to_vec();
    match Scratch::new(Kind::Btrfs) {
        Ok(_) => drivers.push("btrfs"),
        Err(error) => vellum_testkit::skip::record(&format!("{test}, on btrfs"), &error.to_string()),
    }
    drivers
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A store in a folder of its own.
pub struct Store {
    pub dir: tempfile::TempDir,
    pub driver: &'static str,
    /// A file system of its own, for a driver that does not work on the machine's.
    _scratch: Option<Scratch>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it printed; it must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out.trim_end().to_owned()
    }

    /// What it complained of; it must have failed with this code.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.starts_with("error: "), "{self:?}");
        self.err
    }
}

impl Store {
    pub fn new(driver: &'static str) -> Self {
        let scratch = (driver == "btrfs").then(|| Scratch::new(Kind::Btrfs).unwrap());
        let place = scratch.as_ref().map_or(std::env::temp_dir(), |scratch| scratch.path().to_owned());
        let dir = tempfile::Builder::new().prefix("vellum-cli-").tempdir_in(place).unwrap();
        Self { dir, driver, _scratch: scratch }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
        command.arg("--root").arg(self.path("root")).args(["--driver", self.driver]);
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        Ran::of(self.command().args(arguments).output().unwrap())
    }

    /// A line of words.
    pub fn words(&self, line: &str) -> Ran {
        self.run(line.split_whitespace())
    }

    /// A line of shell, in which `$V` is the command.
    pub fn shell(&self, line: &str) -> Ran {
        let vellum = format!(
            "{} --root {} --driver {}",
            env!("CARGO_BIN_EXE_vellum"),
            self.path("root").display(),
            self.driver
        );
        let mut command = Command::new("bash");
        command.args(["-c", line]).env("V", vellum).current_dir(self.dir.path());
        Ran::of(command.stdin(Stdio::null()).output().unwrap())
    }

    pub fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.words(line).ok()).unwrap()
    }

    /// An image `base:1` of a folder, and `derived:2` on it.
    pub fn with_images(driver: &'static str) -> Self {
        let store = Self::new(driver);
        write_tree(&store.path("tree"));
        store.words("import tree base:1").ok();
        store.words("create --name maker base:1").ok();
        let root = PathBuf::from(store.words("mount maker").ok());
        std::fs::write(root.join("etc/new"), "new\n").unwrap();
        std::fs::remove_file(root.join("etc/second")).unwrap();
        store.words("umount maker").ok();
        store.words("commit maker derived:2").ok();
        store.words("rm maker").ok();
        store
    }
}

/// A small tree with what archives find hard.
fn write_tree(root: &Path) {
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::create_dir_all(root.join("a/b/c")).unwrap();
    std::fs::write(root.join("etc/first"), "x".repeat(5000)).unwrap();
    std::fs::hard_link(root.join("etc/first"), root.join("etc/second")).unwrap();
    std::os::unix::fs::symlink("first", root.join("etc/link")).unwrap();
    std::fs::write(root.join("a/b").join("n".repeat(200)), "long").unwrap();
}

impl Drop for Store {
    fn drop(&mut self) {
        // A test that reset its store itself has none to reset.
        let _ = self.words("system reset -f");
    }
}

/// Whether a program is on this machine.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

/// Puts the command where other users reach it too: the target folder may be closed to them.
///
/// By another program: a descriptor of this one for writing would go over into what other threads start meanwhile, and the
/// copy could not be run until they end (`Text file busy`).
pub fn copy_command(to: &Path) {
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_vellum")).arg(to).status().unwrap();
    assert!(copied.success());
}
