//! The store of a user without privileges: namespaces that are kept, mounts in them that outlive commands.
//!
//! Run by root it becomes an ordinary user first (setpriv); it has no harness, because a process with threads cannot enter a
//! namespace. The same binary is the test, the command under test and the holder:
//!
//! ```text
//! rootless                     the test
//! rootless hold DIR            the holder
//! rootless DO DIR [ARGUMENT]   a command that enters the namespaces first
//! ```
#![expect(clippy::print_stdout, reason = "this is how the commands answer")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vellum_driver::{Mount, MountOption, MountPlan, MountSource, PathRef};
use vellum_mount::Mounter;
use vellum_sys::ns::{self, Entered, Facts, NsError};
use vellum_types::LayerId;

const USER: u32 = 1000;

/// How a command ends when this machine lets nobody have user namespaces.
const UNAVAILABLE: i32 = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hold", dir] => {
            let _ = ns::hold(Path::new(dir), Path::new(dir));
            std::process::exit(1);
        }
        ["end", dir] => println!("{}", ns::end(Path::new(dir)).expect("an end")),
        ["runtime", _] => println!("{}", runtime()),
        [task, dir, ref rest @ ..] if task.starts_with("do-") => {
            let dir = Path::new(dir);
            match ns::enter_or_create(dir, [Path::new("hold"), dir]) {
                Ok(Entered::Joined(_)) => {
                    let _ = ns::reexec();
                    panic!("no second life");
                }
                Ok(Entered::Privileged) => command(task, dir, rest),
                Err(NsError::Unavailable { reason }) => {
                    println!("{reason}");
                    std::process::exit(UNAVAILABLE);
                }
                Err(error) => fail(&error),
            }
        }
        // Test runners ask what there is; there is one test, which is the whole.
        [.., "--list"] | ["--list", ..] => println!("rootless: test"),
        _ => test(),
    }
}

fn runtime() -> String {
    vellum_mount::runtime_folder("test").unwrap_or_else(|error| fail(&error)).display().to_string()
}

fn fail(error: &dyn std::error::Error) -> ! {
    println!("{error}: {:?}", error.source().map(ToString::to_string));
    std::process::exit(3)
}

/// What a command does once it is inside.
fn command(task: &str, dir: &Path, rest: &[&str]) {
    let id = LayerId::new(1).expect("an id");
    let mounter = || Mounter::new(dir.join("run"), dir.join("mnt")).expect("a mounter");
    match (task, rest) {
        ("do-acquire", []) => match mounter().acquire(id, &plan(dir)) {
            Ok(path) => println!("{}", path.display()),
            Err(error) => fail(&error),
        },
        ("do-release", []) => println!("{:?}", mounter().release(id).expect("a release")),
        ("do-sweep", []) => println!("{:?}", mounter().sweep().expect("a sweep")),
        ("do-read", [file]) => println!("{}", std::fs::read_to_string(file).expect("the file")),
        ("do-write", [file]) => std::fs::write(file, "written").expect("the file"),
        ("do-where", []) => {
            let namespace = vellum_sys::mountinfo::MountNamespace::current().expect("a namespace");
            println!("{} {}", namespace.inode, std::env::current_dir().expect("a folder").display());
        }
        ("do-runtime", []) => println!("{}", runtime()),
        ("do-facts", []) => println!("{:?}", Facts::read().expect("facts")),
        ("do-own", [file]) => {
            std::fs::write(file, "x").expect("the file");
            std::os::unix::fs::chown(file, Some(33), Some(33)).expect("an owner");
        }
        other => panic!("{other:?}"),
    }
}

fn plan(dir: &Path) -> MountPlan {
    let path =
        |word: &str, name: &str| MountOption::Path(word.into(), PathRef::Host(dir.join("layers").join(name)));
    MountPlan::of(Mount {
        fs_type: "overlay".into(),
        source: MountSource::Name("overlay".into()),
        options: vec![
            path("lowerdir+", "lower"),
            path("upperdir", "upper"),
            path("workdir", "work"),
            MountOption::Flag("userxattr".into()),
        ],
        read_only: false,
    })
}

/// A folder of the user's, and the way to run commands in it.
struct Store {
    dir: tempfile::TempDir,
    exe: PathBuf,
    /// Lines for /etc/subuid and /etc/subgid, for this store's commands only.
    ranges: Option<&'static str>,
}

impl Store {
    fn new(ranges: Option<&'static str>) -> Self {
        let dir = tempfile::Builder::new().prefix("vellum-rootless-test").tempdir().expect("a folder");
        // Where the user can run it, wherever the target folder is.
        let exe = dir.path().join("exe");
        std::fs::copy(std::env::current_exe().expect("this binary"), &exe).expect("a copy");
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        for name in ["", "layers", "layers/lower", "layers/upper", "layers/work"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).expect("a folder");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("a mode");
            std::os::unix::fs::chown(&path, Some(USER), Some(USER)).expect("an owner");
        }
        let file = dir.path().join("layers/lower/file");
        std::fs::write(&file, "below").expect("a file");
        std::os::unix::fs::chown(&file, Some(USER), Some(USER)).expect("an owner");
        Self { dir, exe, ranges }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let user = USER.to_string();
        let become_user = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
        let mut words: Vec<&str> = Vec::new();
        let ranges = self.path().join("ranges");
        if let Some(text) = self.ranges {
            std::fs::write(&ranges, text).expect("a file");
            let script = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";
            words.extend(["unshare", "-m", "sh", "-c", script, ranges.to_str().expect("UTF-8")]);
        }
        words.extend(become_user);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.exe).arg(arguments[0]).arg(self.path()).args(&arguments[1..]);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("a command");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.command(&["end"]).output();
    }
}

fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    format!("{}{error}", String::from_utf8_lossy(&output.stdout)).trim().to_owned()
}

fn test() {
    let cases: [(&str, fn()); 6] = [
        ("root_a_mount_outlives_its_command_and_is_not_seen_outside", mount_outlives_command),
        ("root_commands_at_once_make_one_holder", one_holder),
        ("root_a_killed_holder_is_replaced", killed_holder),
        ("root_owners_of_subordinate_ranges_can_be_kept", subordinate_ranges),
        ("root_the_working_directory_stays", working_directory),
        ("root_the_runtime_folder_is_the_same_inside_and_private", runtime_folder),
    ];
    let unable = unable();
    for (name, case) in cases {
        match &unable {
            Some(reason) => println!("SKIP {name}: {reason}"),
            None => {
                case();
                println!("test {name} ... ok");
            }
        }
    }
}

/// Why the tests cannot run here.
fn unable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to become another user".into());
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        return Some("needs setpriv".into());
    }
    let store = Store::new(None);
    let output = store.command(&["do-acquire"]).output().expect("a command");
    let _ = store.command(&["do-release"]).output();
    if output.status.code() == Some(UNAVAILABLE) {
        return Some(text(&output));
    }
    assert!(output.status.success(), "{}", text(&output));
    None
}

fn mount_outlives_command() {
    let store = Store::new(None);
    let path = store.run(&["do-acquire"]);
    let file = format!("{path}/file");
    assert_eq!(store.run(&["do-read", &file]), "below");
    assert!(!Path::new(&file).exists(), "outside nothing is mounted");
    assert_eq!(store.run(&["do-write", &file]), "");
    assert_eq!(
        std::fs::read_to_string(store.path().join("layers/upper/file")).expect("the upper"),
        "written"
    );
    assert_eq!(store.path().join("layers/upper/file").metadata().expect("the file").uid(), USER);
    assert_eq!(store.run(&["do-acquire"]), path);
    assert!(store.run(&["do-release"]).contains("left: 1"));
    assert!(store.run(&["do-release"]).contains("unmounted: true"));
    assert!(store.run(&["do-facts"]).contains("outside: 1000, count: 1"));
    assert_eq!(store.run(&["end"]), "true");
    assert_eq!(store.run(&["end"]), "false");
}

fn one_holder() {
    let store = Store::new(None);
    let children: Vec<_> = (0..8)
        .map(|_| {
            store.command(&["do-where"]).stdout(std::process::Stdio::piped()).spawn().expect("a command")
        })
        .collect();
    let answers: std::collections::BTreeSet<String> =
        children.into_iter().map(|child| text(&child.wait_with_output().expect("an answer"))).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

fn killed_holder() {
    let store = Store::new(None);
    let path = store.run(&["do-acquire"]);
    let holder = ns::holder(store.path()).expect("a record").expect("a holder");
    assert!(std::fs::read_dir(format!("/proc/{holder}/fd")).expect("its files").count() <= 5);
    let pid = rustix::process::Pid::from_raw(i32::try_from(holder).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a kill");
    while Path::new(&format!("/proc/{holder}/ns/mnt")).metadata().is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(store.run(&["do-sweep"]).contains("records: 1"));
    assert_eq!(store.run(&["do-acquire"]), path);
    assert_eq!(store.run(&["do-read", &format!("{path}/file")]), "below");
    assert!(store.run(&["do-release"]).contains("unmounted: true"));
}

fn subordinate_ranges() {
    if Command::new("newuidmap").output().is_err() {
        println!("SKIP root_owners_of_subordinate_ranges_can_be_kept: needs newuidmap");
        return;
    }
    let store = Store::new(Some("1000:700000:65536\n"));
    let facts = store.run(&["do-facts"]);
    assert!(facts.contains("inside: 1, outside: 700000, count: 65536"), "{facts}");
    let file = store.path().join("layers/owned");
    store.run(&["do-own", file.to_str().expect("UTF-8")]);
    let stat = file.metadata().expect("the file");
    assert_eq!((stat.uid(), stat.gid()), (700_032, 700_032));
}

fn working_directory() {
    let store = Store::new(None);
    for _ in 0..2 {
        let output = store.command(&["do-where"]).current_dir("/usr/share").output().expect("a command");
        assert!(text(&output).ends_with(" /usr/share"), "{}", text(&output));
    }
}

fn runtime_folder() {
    let store = Store::new(None);
    let answer = |task: &str, given: &Path| {
        let output = store.command(&[task]).env("XDG_RUNTIME_DIR", given).output().expect("a command");
        text(&output)
    };
    let given = store.path().canonicalize().expect("a path");
    let expected = given.join("vellum/test").display().to_string();
    assert_eq!(answer("runtime", &given), expected);
    assert_eq!(answer("do-runtime", &given), expected);
    // Where there is none it is in /tmp, for which another user may have made it first.
    let fallback = PathBuf::from(format!("/tmp/vellum-{USER}"));
    if fallback.exists() {
        return;
    }
    std::fs::create_dir(&fallback).expect("a folder");
    let refused = answer("runtime", Path::new("/nonexistent"));
    std::fs::remove_dir(&fallback).expect("an empty folder");
    assert!(refused.contains("belongs to user 0, not to user 1000"), "{refused}");
    let expected = fallback.join("test").display().to_string();
    let found = [answer("runtime", Path::new("/nonexistent")), answer("do-runtime", Path::new("relative"))];
    std::fs::remove_dir_all(&fallback).expect("an empty folder");
    assert_eq!(found, [expected.clone(), expected]);
}
