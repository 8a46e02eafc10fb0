//! What another user of the machine reaches of a store: nothing. And what they prepare beforehand is not used.

mod common;

use common::user::{User, refused};
use common::{Ran, Store, drivers, is_root};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vellum_testkit::skip;
use vellum_testkit::tree::Tree;

const OTHER: u32 = 54_321;
/// A user who has a store.
const OWNER: u32 = 54_400;

/// A script, as the other user, with this on its standard input.
fn as_other(script: &str, input: &[u8]) -> Ran {
    let mut command = Command::new("setpriv");
    let id = OTHER.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "bash", "-c", script]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    Ran::of(output)
}

/// Which of these paths the other user can look at, read, write, execute or enter.
fn reached(paths: &[PathBuf]) -> Vec<String> {
    let input: Vec<u8> =
        paths.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect();
    let script = r#"while IFS= read -r -d "" p; do
        how=; for t in e L r w x; do [ -$t "$p" ] && how=$how$t; done
        [ -d "$p" ] && ls "$p" >/dev/null 2>&1 && how=${how}l
        [ -n "$how" ] && printf '%s %s\n' "$how" "$p"
    done; true"#;
    as_other(script, &input).ok().lines().map(str::to_owned).collect()
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) {
    paths.push(folder.to_owned());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.symlink_metadata().is_ok_and(|facts| facts.is_dir()) {
            walk(&path, paths)
        } else {
            paths.push(path)
        }
    }
}

/// A process of root's that sits in a container's root, killed when dropped.
struct Sitting(Child);

impl Sitting {
    fn new(root: &Path) -> Self {
        let command = &mut Command::new("sleep");
        Self(
            command
                .arg("600")
                .current_dir(root)
                .stdin(fs::File::open(root.join("secret")).unwrap())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What nobody else may come near: and all of it as open as can be.
fn tempting() -> Tree {
    Tree::new()
        .dir("", 0o777)
        .dir("open", 0o1777)
        .file("open/file", "for everybody inside\n", 0o666)
        .file("secret", "key\n", 0o644)
        .file("su", "#!/bin/sh\nid\n", 0o4755)
        .file("sg", "#!/bin/sh\nid\n", 0o2777)
        .char_device("null", 1, 3)
        .mode(0o666)
        .fifo("pipe")
        .mode(0o666)
}

#[test]
fn root_another_user_reaches_nothing_of_a_store() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    for driver in drivers("root_another_user_reaches_nothing_of_a_store") {
        let store = Store::new(driver);
        // Everything above the store is open: what closes it is the store's own.
        fs::set_permissions(store.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        tempting().make(&store.path("tree")).unwrap();
        // An open umask of whoever runs the command opens nothing.
        store.shell("umask 0 && $V import tree base:1 && $V create --name c base:1 && $V create --name gone base:1").ok();
        let root = PathBuf::from(store.shell("umask 0 && $V mount c").ok());
        fs::write(root.join("written"), "in the container\n").unwrap();
        fs::set_permissions(root.join("written"), fs::Permissions::from_mode(0o4777)).unwrap();
        store
            .shell("umask 0 && $V snapshot c before && $V commit c changed:1 && $V save -o image.tar base:1")
            .ok();
        // A removed layer that waits in the trash, and something in tmp.
        let trash = store.path("root/trash").join(driver);
        fs::DirBuilder::new().recursive(true).mode(0o777).create(trash.join("x-1")).unwrap();
        fs::write(trash.join("x-1/su"), "x").unwrap();
        fs::set_permissions(trash.join("x-1/su"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::write(store.path("root/tmp/blob"), "x").unwrap();
        fs::set_permissions(store.path("root/tmp/blob"), fs::Permissions::from_mode(0o666)).unwrap();
        let sitting = Sitting::new(&root);

        let mut paths = Vec::new();
        walk(&store.path("root"), &mut paths);
        let uuid = fs::read_to_string(store.path("root/store.json")).unwrap();
        let uuid: serde_json::Value = serde_json::from_str(&uuid).unwrap();
        walk(&Path::new("/run/vellum").join(uuid["uuid"].as_str().unwrap()), &mut paths);
        let process = PathBuf::from(format!("/proc/{}", sitting.0.id()));
        for way in ["root", "cwd", "fd/0"] {
            paths.push(process.join(way).join("."));
        }
        for below in ["su", "secret", "open/file", "null"] {
            paths.push(process.join("cwd").join(below));
            paths.push(process.join("root").join(root.strip_prefix("/").unwrap()).join(below));
        }
        assert!(paths.len() > 80 && paths.contains(&root.join("su")), "{}", paths.len());
        assert!(
            root.join("su").metadata().unwrap().mode() & 0o4000 != 0,
            "the bit is there for the container"
        );

        // The root may be passed through and not listed; of what is in it only the names, that everybody knows, can be asked for.
        let known: Vec<String> = reached(&paths)
            .into_iter()
            .filter(|line| {
                let (how, path) = line.split_once(' ').unwrap();
                let top = Path::new(path) == store.path("root")
                    || Path::new(path).parent() == Some(&store.path("root"));
                let allowed = if Path::new(path) == store.path("root") { "ex" } else { "e" };
                !(top && how == allowed)
            })
            .collect();
        assert!(known.is_empty(), "{driver}: another user reaches {known:#?}");
        drop(sitting);
        store.words("umount --all").ok();
    }
}

#[test]
fn root_another_user_reaches_nothing_of_an_ordinary_users_store() {
    if !is_root() {
        skip!("needs root, to become two other users");
    }
    let user = User::new(OWNER, false);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    // What an ordinary user can make, as open as can be; everything above the store is open too.
    let line = "umask 0 && mkdir -m 1777 -p tree/open && echo x >tree/open/file && echo key >tree/secret && chmod 777 tree && \
                cp /bin/true tree/su && chmod 4755 tree/su && cp /bin/true tree/sg && chmod 2777 tree/sg && mkfifo tree/pipe && \
                $V import tree base:1 && $V create --name c base:1 && $V create --name b base:1";
    user.shell(line).ok();
    let root = user.shell("umask 0 && $V mount c 2>/dev/null").ok();
    let line = "umask 0 && echo in >$ROOT/written && chmod 4777 $ROOT/written";
    user.shell(&format!("export ROOT={root} && $V unshare sh -c '{line}'")).ok();
    user.shell("umask 0 && $V snapshot c before && $V commit c changed:1").ok();
    let store = user.path(".local/share/vellum");
    for above in [".local", ".local/share"] {
        fs::set_permissions(user.path(above), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut paths = Vec::new();
    walk(&store, &mut paths);
    walk(Path::new(&format!("/tmp/vellum-{OWNER}")), &mut paths);
    // The mount is seen only in the holder's namespace, which can be reached through the holder.
    let holders = user.holders();
    assert_eq!(holders.len(), 1);
    let process = PathBuf::from(format!("/proc/{}", holders[0]));
    let inside = process.join("root").join(root.strip_prefix('/').unwrap());
    for name in ["", "su", "sg", "secret", "open", "open/file", "written"] {
        assert!(inside.join(name).exists(), "{name} is there for root");
        paths.push(inside.join(name));
    }
    paths.extend(["root/.", "cwd/."].map(|way| process.join(way)));
    assert!(paths.len() > 60, "{}", paths.len());
    let reached = reached(&paths);
    // That there is a store and a folder for its mounts is no secret, and nothing more is told.
    let known = [store.clone(), PathBuf::from(format!("/tmp/vellum-{OWNER}"))];
    let told = |line: &String| known.iter().any(|path| *line == format!("e {}", path.display()));
    let more: Vec<_> = reached.iter().filter(|line| !told(line)).collect();
    assert!(more.is_empty(), "another user reaches {more:#?}");
    assert!(reached.contains(&format!("e {}", store.display())), "nothing above the store closes it");
    // The namespace does not let another user in either.
    let pid = holders[0];
    let entered = as_other(&format!("nsenter --user --mount --target {pid} ls {root}"), b"");
    assert!(entered.code != Some(0) && entered.out.is_empty(), "{entered:?}");
    user.shell("$V umount --all && $V system reset -f").ok();
    user.has_no_holders();
}

#[test]
fn root_every_file_and_folder_of_a_store_is_its_owners_alone() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    tempting().make(&store.path("tree")).unwrap();
    store.shell("umask 0 && $V import tree base:1 && $V create --name c base:1 && $V mount c").ok();
    for name in fs::read_dir(store.path("root")).unwrap() {
        let path = name.unwrap().path();
        let facts = path.symlink_metadata().unwrap();
        assert_eq!((facts.mode() & 0o077, facts.uid()), (0, 0), "{}", path.display());
    }
    let mut paths = Vec::new();
    for own in ["config", "images", "layers", "locks", "tmp"] {
        walk(&store.path("root").join(own), &mut paths);
    }
    // What closes them is their own mode, not only that of a folder above.
    let uuid = store.json("info --json")["uuid"].as_str().unwrap().to_owned();
    let runtime = Path::new("/run/vellum").join(uuid);
    paths.extend([runtime.parent().unwrap().to_owned(), runtime]);
    for path in paths {
        let facts = path.symlink_metadata().unwrap();
        assert_eq!((facts.mode() & 0o077, facts.uid()), (0, 0), "{}", path.display());
    }
    store.words("umount --all").ok();
}

#[test]
fn root_a_folder_that_another_user_has_prepared_is_no_store() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("vfs");
    let root = store.path("root");
    // Somebody else's.
    fs::create_dir(&root).unwrap();
    chown(&root, Some(OTHER), Some(OTHER)).unwrap();
    let error = store.words("import /etc/ssl base:1").fails(2);
    assert!(error.contains("it belongs to user 54321"), "{error}");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing was made in it");
    // Its own, but open to all, with something planted.
    chown(&root, Some(0), Some(0)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    // A folder of the owner's own, as closed as it should be: only that a link leads to it speaks against it.
    let victim = store.path("victim");
    fs::DirBuilder::new().mode(0o700).create(&victim).unwrap();
    for planted in ["locks", "layers", "mnt", "vfs", "catalog.db", "store.json"] {
        symlink(&victim, root.join(planted)).unwrap();
        let error = store.words("import /etc/ssl base:1");
        assert!(
            error.code != Some(0) && error.err.contains("others can make files in it"),
            "{planted}: {error:?}"
        );
        fs::remove_file(root.join(planted)).unwrap();
    }
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    // Closed since, but a folder in it is somebody else's, open, or a link.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
    for planted in ["locks", "mnt", "trash", "vfs"] {
        let folder = root.join(planted);
        fs::remove_dir_all(&folder).unwrap_or_default();
        fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
        if !["locks", "mnt"].contains(&planted) {
            // Where no store was begun, anything but these is refused for being there.
            fs::write(root.join("locks/store"), "").unwrap();
        }
        chown(&folder, Some(OTHER), Some(OTHER)).unwrap();
        let error = store.words("import /etc/ssl base:1");
        assert!(error.code != Some(0) && error.err.contains("54321"), "{planted}: {error:?}");
        chown(&folder, Some(0), Some(0)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let error = store.words("import /etc/ssl base:1");
        assert!(error.code != Some(0) && error.err.contains("open to others"), "{planted}: {error:?}");
        fs::remove_dir(&folder).unwrap();
        symlink(&victim, &folder).unwrap();
        assert_ne!(store.words("import /etc/ssl base:1").code, Some(0), "{planted}: a link");
        fs::remove_file(&folder).unwrap();
    }
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    // An empty folder that was open is closed and used.
    fs::remove_dir_all(&root).unwrap();
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    store.words("import /etc/ssl base:1").ok();
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o711);
}

#[test]
fn root_a_runtime_folder_in_tmp_cannot_be_prepared_by_others() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    // A number that no test and nobody else uses: the folder's name is made of it.
    let uid = 54_987;
    let home = tempfile::Builder::new().prefix("vellum-user-").tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let vellum = home.path().join("vellum");
    common::copy_command(&vellum);
    chown(home.path(), Some(uid), Some(uid)).unwrap();
    let runtime = PathBuf::from(format!("/tmp/vellum-{uid}"));
    let target = home.path().join("target");
    fs::create_dir(&target).unwrap();
    chown(&target, Some(OTHER), Some(OTHER)).unwrap();
    let create = || {
        let mut command = Command::new("setpriv");
        let id = uid.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(&vellum);
        command.args(["--driver", "vfs", "import", "/etc/ssl", "base:1"]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", home.path()).current_dir("/");
        Ran::of(command.stdin(Stdio::null()).output().unwrap())
    };
    // A link into a folder of the user's own, to which nothing else can be objected.
    let private = home.path().join("private");
    fs::DirBuilder::new().mode(0o700).create(&private).unwrap();
    chown(&private, Some(uid), Some(uid)).unwrap();
    type Prepare<'a> = (&'static str, Box<dyn Fn() + 'a>);
    let prepared: Vec<Prepare<'_>> = vec![
        (
            "belongs to user",
            Box::new(|| {
                fs::DirBuilder::new().mode(0o755).create(&runtime).unwrap();
                chown(&runtime, Some(OTHER), Some(OTHER)).unwrap();
            }),
        ),
        (
            "open to others",
            Box::new(|| {
                fs::create_dir(&runtime).unwrap();
                chown(&runtime, Some(uid), Some(uid)).unwrap();
                fs::set_permissions(&runtime, fs::Permissions::from_mode(0o770)).unwrap();
            }),
        ),
        ("cannot make or open", Box::new(|| symlink(&target, &runtime).unwrap())),
        ("cannot make or open", Box::new(|| symlink(&private, &runtime).unwrap())),
        ("cannot make or open", Box::new(|| fs::write(&runtime, "").unwrap())),
    ];
    for (expected, prepare) in prepared {
        prepare();
        let refused = create();
        let facts = runtime.symlink_metadata().unwrap();
        if facts.is_dir() {
            fs::remove_dir_all(&runtime).unwrap()
        } else {
            fs::remove_file(&runtime).unwrap()
        }
        assert!(refused.code != Some(0) && refused.err.contains(expected), "{expected}: {refused:?}");
        for folder in [&target, &private] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{expected}: {}", folder.display());
        }
    }
}
