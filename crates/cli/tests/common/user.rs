//! An ordinary user, who is one only for the command's tests.

use super::Ran;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The first of a user's subordinate numbers, where there are some.
const SUBORDINATE: u32 = 900_000;

/// A user's folder with the command in it, and stores there.
pub struct User {
    pub home: tempfile::TempDir,
    uid: u32,
    /// Whether /etc/subuid and /etc/subgid give the user further numbers.
    ranges: bool,
}

impl User {
    pub fn new(uid: u32, ranges: bool) -> Self {
        let home = tempfile::Builder::new().prefix("vellum-user-").tempdir().unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        super::copy_command(&home.path().join("vellum"));
        let etc = home.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = format!("vellumtest{uid}:x:{uid}:{uid}::/nonexistent:/bin/sh\n");
        std::fs::write(etc.join("passwd"), passwd + &line).unwrap();
        let range = if ranges { format!("vellumtest{uid}:{SUBORDINATE}:65536\n") } else { String::new() };
        for name in ["subuid", "subgid"] {
            std::fs::write(etc.join(name), &range).unwrap();
        }
        chown(home.path(), Some(uid), Some(uid)).unwrap();
        Self { home, uid, ranges }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A line of shell as the user, who is one only in a mount namespace of this line: nothing of the machine's is changed.
    pub fn shell(&self, line: &str) -> Ran {
        let script = "mount --make-rprivate / && \
             for file in passwd subuid subgid; do [ -e /etc/$file ] || continue; mount --bind $HOME/etc/$file /etc/$file || exit 1; done; \
             cd $HOME && exec setpriv --reuid $ID --regid $ID --clear-groups bash -c \"$0\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", script, line]).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.env("V", self.path("vellum")).env("ID", self.uid.to_string());
        Ran::of(command.output().unwrap())
    }

    /// The holders of namespaces that this user's command has started and that live.
    pub fn holders(&self) -> Vec<i32> {
        let home = self.home.path().to_str().unwrap();
        let is_holder = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("__namespace-holder") && line.contains(home)
        };
        let pids = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(is_holder).collect()
    }

    /// That no holder is left, soon.
    #[track_caller]
    pub fn has_no_holders(&self) {
        let start = Instant::now();
        while !self.holders().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "holders are left: {:?}", self.holders());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A tar of files of several owners, made by root, with its digest.
    pub fn tar_of_owners(&self) -> String {
        let line = "mkdir -p t/bin t/home/u && cp /bin/true t/bin/su && chmod 4755 t/bin/su && echo x >t/home/u/f && \
                    chown -R 1000:1000 t/home/u && echo g >t/games && chown 5:60 t/games && \
                    setfattr -n user.note -v kept t/games && tar --xattrs --xattrs-include='*' -cf t.tar -C t . && \
                    rm -r t && chmod 644 t.tar && sha256sum <t.tar";
        let ran =
            Ran::of(Command::new("bash").args(["-c", line]).current_dir(self.home.path()).output().unwrap());
        ran.ok().split_whitespace().next().unwrap().to_owned()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.shell("$V system reset -f");
        for pid in self.holders() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        // Records of stores that were deleted by hand stay until a reboot otherwise.
        let _ = std::fs::remove_dir_all(format!("/tmp/vellum-{}", self.uid));
    }
}

/// Why the test of this user cannot be made here, if so.
pub fn refused(user: &User) -> Option<String> {
    let missing = |program: &&str| !Path::new("/usr/bin").join(program).exists();
    if let Some(program) = ["newuidmap", "newgidmap"].iter().find(|program| user.ranges && missing(program)) {
        return Some(format!("{program} is not installed"));
    }
    if user.ranges && ["/etc/subuid", "/etc/subgid"].iter().any(|file| !Path::new(file).exists()) {
        return Some("there is no /etc/subuid to put another in the place of".to_owned());
    }
    let ran = user.shell("unshare --user --map-root-user --mount true");
    if ran.code != Some(0) {
        return Some(format!("ordinary users make no namespaces here: {}", ran.err.trim()));
    }
    // What the machine allows, the command does: its own failures are not skipped.
    user.shell("$V unshare true").ok();
    None
}
