//! A folder to work in, beside one that nothing may touch.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use vellum_testkit::tree::{Compare, Snapshot};

/// ```text
///   BASE/canary/…     what must stay as it is
///   BASE/cell/…       where the work is done, emptied each time
/// ```
pub(crate) struct Jail {
    base: tempfile::TempDir,
    before: Snapshot,
}

impl Jail {
    pub(crate) fn new() -> Self {
        let base = tempfile::Builder::new().prefix("vellum-fuzz-").tempdir().expect("a temporary folder");
        let canary = base.path().join("canary");
        fs::create_dir_all(canary.join("etc")).expect("a canary");
        fs::write(canary.join("victim"), b"safe").expect("a canary");
        fs::set_permissions(canary.join("victim"), fs::Permissions::from_mode(0o600)).expect("a canary");
        fs::write(canary.join("etc/passwd"), b"root:x:0:0\n").expect("a canary");
        std::os::unix::fs::symlink("victim", canary.join("link")).expect("a canary");
        let before = Snapshot::of(&canary).expect("the canary's snapshot");
        Self { base, before }
    }

    /// Where links lead that mean harm.
    pub(crate) fn canary(&self) -> PathBuf {
        self.base.path().join("canary")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.base.path().join("cell").join(name)
    }

    /// An empty folder of this name in the cell.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a folder in the cell");
        path
    }

    /// Takes the cell away with what is in it, and looks after the canary.
    pub(crate) fn clear(&self) {
        let base = open(self.base.path());
        vellum_archive::tree::remove(std::os::fd::AsFd::as_fd(&base), "cell".as_ref())
            .expect("whatever was made can be removed");
        self.check();
    }

    fn check(&self) {
        let now = Snapshot::of(&self.canary()).expect("the canary is still there");
        let differences = self.before.differences(&now, Compare::ALL);
        assert!(differences.is_empty(), "something outside has changed: {differences:#?}");
        let beside: Vec<_> = fs::read_dir(self.base.path())
            .expect("the base")
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name != "canary" && name != "cell")
            .collect();
        assert!(beside.is_empty(), "something was made outside: {beside:?}");
    }
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).expect("what was just made can be opened").into()
}

/// An error with all that caused it.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

thread_local! {
    static JAIL: Jail = Jail::new();
}

/// Runs `work` in this thread's jail, which is empty before and after.
pub(crate) fn jailed(work: impl FnOnce(&Jail)) {
    JAIL.with(|jail| {
        jail.clear();
        work(jail);
        jail.clear();
    });
}
