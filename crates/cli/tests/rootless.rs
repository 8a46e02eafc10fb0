//! An ordinary user's store: the command run as another user, in namespaces that it makes itself.

mod common;

use common::{Ran, is_root};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use vellum_testkit::skip;

const USER: u32 = 54_321;

/// A user's folder with the command in it, and a store there.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("vellum-user-").tempdir().unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        // The target folder may be closed to other users.
        std::fs::copy(env!("CARGO_BIN_EXE_vellum"), home.path().join("vellum")).unwrap();
        chown(home.path(), Some(USER), Some(USER)).unwrap();
        Self { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn shell(&self, line: &str) -> Ran {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(self.home.path()).uid(USER).gid(USER);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.env("V", self.path("vellum")).stdin(Stdio::null());
        Ran::of(command.output().unwrap())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.shell("$V system reset -f");
        // Only a folder that nobody uses any more is removed.
        let _ = std::fs::remove_dir(format!("/tmp/vellum-{USER}"));
    }
}

/// Why user namespaces cannot be made here, if so.
fn refused(user: &User) -> Option<String> {
    let ran = user.shell("$V unshare true");
    (ran.code != Some(0)).then_some(ran.err)
}

#[test]
fn root_an_ordinary_user_has_a_store() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    let user = User::new();
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    user.shell("mkdir -p tree/etc && echo hi > tree/etc/x && $V import tree base:1").ok();
    assert!(user.path(".local/share/vellum/catalog.db").exists());
    user.shell("$V create --name c base:1").ok();
    let ran = user.shell("$V mount c");
    assert!(ran.err.contains("vellum unshare"), "{ran:?}");
    let root = ran.ok();
    // Outside of the namespace nothing is seen; inside it is, and can be written.
    assert_eq!(user.shell(&format!("ls {root}")).ok(), "");
    user.shell(&format!("$V unshare sh -c 'cat {root}/etc/x && echo new > {root}/new'")).ok();
    assert_eq!(user.shell("$V unshare sh -c 'exit 7'").code, Some(7));
    assert_eq!(user.shell("$V diff c").ok(), "A /new");
    assert!(user.shell("$V info").ok().contains("userxattr: true"));
    user.shell("$V umount c && $V commit c new:1 && $V save -o new.tar new:1 && $V load -i new.tar").ok();
    assert_eq!(user.shell("$V check").ok(), "The store is sound.");
    user.shell("$V demo --dir .").ok();
    user.shell("$V system reset -f").ok();
    assert!(!user.path(".local/share/vellum").exists());
}
