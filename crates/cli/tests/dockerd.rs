//! A real docker daemon whose images and containers are kept by Vellum, through its plugin.
#![allow(missing_docs)]

mod common;

use common::plugin::Server;
use common::{DRIVERS, Store, is_root};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vellum_testkit::skip;

/// Of Debian's package docker.io: another client on the path may be too new for the daemon.
const CLIENT: &str = "/usr/bin/docker";

/// A daemon with everything of its own; it ends, with its containers, when dropped.
struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, driver: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let log = std::fs::OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.args(["--experimental", "--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.args(["--storage-driver", driver, "--live-restore"]);
        command.arg("--data-root").arg(dir.join("data")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid"));
        command.arg("--host").arg(format!("unix://{}", dir.join("sock").display()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Self { child, dir: dir.to_owned() };
        let until = Instant::now() + Duration::from_secs(120);
        while !daemon.command("version").output().unwrap().status.success() {
            let ended = daemon.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < until, "{ended:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(CLIENT);
        command.env("DOCKER_CONFIG", &self.dir).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        command.arg("--host").arg(format!("unix://{}", self.dir.join("sock").display()));
        command.args(line.split_whitespace()).current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a line of words; what it printed. It must succeed.
    #[track_caller]
    fn words(&self, line: &str) -> String {
        self.run(line, self.command(line))
    }

    #[track_caller]
    fn run(&self, line: &str, mut command: Command) -> String {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let log = || {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            log.lines().filter(|line| !line.contains("level=info")).collect::<Vec<_>>().join("\n")
        };
        assert!(output.status.success(), "docker {line}: {said}\n{}", log());
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Ends the daemon alone: containers live on.
    fn stop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let until = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let all = self.command("ps -aq").output();
            let all = all.map(|all| String::from_utf8_lossy(&all.stdout).into_owned()).unwrap_or_default();
            let _ = self.command(&format!("rm -f {}", all.replace('\n', " "))).output();
        }
        self.stop();
        // With live-restore the containerd that the daemon started lives on.
        let pid = std::fs::read_to_string(self.dir.join("exec/containerd/containerd.pid"));
        if let Ok(pid) = pid {
            let _ = Command::new("kill").arg(pid.trim()).status();
            let until = Instant::now() + Duration::from_secs(20);
            while Path::new("/proc").join(pid.trim()).exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        for (_, point) in mounts_below(&self.dir) {
            let _ = Command::new("umount").arg("-l").arg(point).status();
        }
    }
}

fn mounts_below(dir: &Path) -> Vec<(String, String)> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let below = |line: &str| {
        let point = line.split(' ').nth(4)?;
        point.starts_with(dir.to_str()?).then(|| (line.to_owned(), point.to_owned()))
    };
    let mut found: Vec<_> = table.lines().filter_map(below).collect();
    found.reverse();
    found
}

/// A plugin's socket in docker's folder, under a name that nobody else has. A server that is killed leaves it.
struct Socket {
    name: String,
    path: PathBuf,
}

impl Socket {
    fn new(store: &Store) -> Self {
        let name = format!("vellum-test-{}-{}", store.driver, std::process::id());
        let path = Path::new("/run/docker/plugins").join(format!("{name}.sock"));
        Self { name, path }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        for path in [self.path.clone(), self.path.with_extension("sock.lock")] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The archives of an image's layers, in order, each with its digest.
fn layers_of(daemon: &Daemon, image: &str, store: &Store) -> Vec<(String, Vec<u8>)> {
    let (file, folder) = (store.path("saved.tar"), store.path("saved"));
    daemon.words(&format!("save -o {} {image}", file.display()));
    std::fs::create_dir(&folder).unwrap();
    let mut command = Command::new("tar");
    assert!(command.arg("-xf").arg(&file).arg("-C").arg(&folder).status().unwrap().success());
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    let manifest = json("manifest.json");
    let config = json(manifest[0]["Config"].as_str().unwrap());
    let tars = manifest[0]["Layers"].as_array().unwrap().iter();
    let diffs = config["rootfs"]["diff_ids"].as_array().unwrap().iter();
    let layers = diffs
        .zip(tars)
        .map(|(diff, tar)| {
            let tar = std::fs::read(folder.join(tar.as_str().unwrap())).unwrap();
            (diff.as_str().unwrap().to_owned(), tar)
        })
        .collect();
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::remove_file(file).unwrap();
    layers
}

/// A folder to build an image of, and the base image, of busybox.
fn sources(store: &Store) {
    let root = store.path("busybox");
    for folder in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().unwrap();
    std::fs::copy(String::from_utf8(busybox.stdout).unwrap().trim(), root.join("bin/busybox")).unwrap();
    for name in ["sh", "sleep", "cat", "echo", "mkdir", "rm", "ls", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(root.join("etc/old"), "old\n").unwrap();
    let context = store.path("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("one"), "one\n").unwrap();
    std::fs::write(context.join("two"), "two\n").unwrap();
    let steps: String = (0..20)
        .map(|n| if n % 2 == 0 { format!("ENV e{n}={n}\n") } else { format!("ARG a{n}={n}\n") })
        .collect();
    let file = format!(
        "FROM base:1\nCOPY one /one\n{steps}COPY two /two\nRUN rm /etc/old && mkdir /made && echo made > /made/it\n"
    );
    std::fs::write(context.join("Dockerfile"), file).unwrap();
    std::fs::write(
        context.join("Stages"),
        "FROM base:1 AS first\nRUN echo built > /built\nFROM first AS second\nRUN echo more > /more\n\
         FROM base:1\nCOPY --from=first /built /built\nCOPY --from=second /more /more\n",
    )
    .unwrap();
}

#[test]
fn root_a_real_docker_daemon_runs_on_vellum() {
    if !is_root() {
        skip!("needs root");
    }
    if !Path::new(CLIENT).exists() || !common::has("dockerd") || !common::has("runc") {
        skip!("no docker daemon (package docker.io)");
    }
    if !Command::new("busybox").output().is_ok_and(|out| out.status.success()) {
        skip!("no busybox (package busybox-static)");
    }
    for driver in DRIVERS {
        let store = Store::new(driver);
        let socket = Socket::new(&store);
        let mut server = Server::at(&store, socket.path.clone());
        let mut daemon = Daemon::start(&store.path("docker"), &socket.name);
        sources(&store);
        images(&daemon, &store);
        daemon = containers(daemon, &store, &mut server, &socket.name);
        empty(&daemon, &store);
    }
}

/// Images come in, are built, and go out as they came.
fn images(daemon: &Daemon, store: &Store) {
    let tar = store.path("base.tar");
    let mut command = Command::new("tar");
    assert!(
        command
            .arg("-C")
            .arg(store.path("busybox"))
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
    daemon.words(&format!("import {} base:1", tar.display()));
    let context = store.path("context").display().to_string();
    daemon.words(&format!("build --network host -q -t built:1 {context}"));
    let before = layers_of(daemon, "built:1", store);
    assert!(before.len() >= 4, "{}", before.len());
    for (digest, tar) in &before {
        assert_eq!(vellum_types::Digest::sha256(tar).to_string(), *digest);
    }
    let saved = store.path("built.tar");
    daemon.words(&format!("save -o {} built:1", saved.display()));
    daemon.words("rmi built:1 base:1");
    daemon.words("image prune -af");
    daemon.words(&format!("load -i {}", saved.display()));
    assert!(layers_of(daemon, "built:1", store) == before, "an image that came back is the same");
    daemon.words(&format!("import {} base:1", tar.display()));
    let mut buildkit =
        daemon.command(&format!("build --network host -q -f {context}/Stages -t stages:1 {context}"));
    buildkit.env("DOCKER_BUILDKIT", "1");
    daemon.run("build with BuildKit", buildkit);
    assert_eq!(daemon.words("run --rm --network host stages:1 cat /built /more"), "built\nmore");
    for (digest, tar) in layers_of(daemon, "stages:1", store) {
        assert_eq!(vellum_types::Digest::sha256(&tar).to_string(), digest);
    }
}

/// A container's life, in which the plugin is killed, and the daemon started again.
fn containers(mut daemon: Daemon, store: &Store, server: &mut Server, name: &str) -> Daemon {
    daemon.words("create --name box --network host built:1 sleep 1000");
    daemon.words("start box");
    assert_eq!(daemon.words("exec box cat /made/it"), "made");
    let pid = daemon.words("inspect --format {{.State.Pid}} box");
    server.kill();
    // The container does not notice.
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    std::fs::write(root.join("tmp/alive"), "alive\n").unwrap();
    *server = Server::at(store, server.socket.clone());
    assert_eq!(daemon.words("exec box cat /tmp/alive"), "alive");
    let mut write = daemon.command("exec box sh -c");
    write.arg("echo x > /made/x; rm /one");
    daemon.run("exec", write);
    let file = store.path("copied");
    std::fs::write(&file, "copied\n").unwrap();
    daemon.words(&format!("cp {} box:/tmp/in", file.display()));
    daemon.words(&format!("cp box:/made/x {}", file.display()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\n");
    let diff = daemon.words("diff box");
    let mut lines: Vec<&str> = diff.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A /made/x", "A /tmp/alive", "A /tmp/in", "C /made", "C /tmp", "D /one"]);
    daemon.words("commit box committed:1");
    assert_eq!(daemon.words("run --rm --network host committed:1 ls /made"), "it\nx");
    let exported = store.path("exported.tar");
    daemon.words(&format!("export -o {} box", exported.display()));
    let listed = Command::new("tar").arg("-tf").arg(&exported).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("made/x\n") && !listed.contains("one\n"), "{listed}");
    // Live restore: the daemon ends, with Cleanup or without, and the container's mount must stay.
    let dir = daemon.dir.clone();
    daemon.stop();
    std::fs::write(root.join("tmp/still"), "still\n").unwrap();
    std::mem::forget(daemon);
    let daemon = Daemon::start(&dir, name);
    assert_eq!(daemon.words("exec box cat /tmp/still"), "still");
    daemon.words("stop -t 0 box");
    daemon.words("start box");
    assert_eq!(daemon.words("exec box cat /tmp/alive /tmp/still"), "alive\nstill");
    daemon.words("rm -f box");
    daemon
}

/// Everything is removed, and nothing is left.
fn empty(daemon: &Daemon, store: &Store) {
    store.words("check").ok();
    daemon.words("builder prune -af");
    daemon.words("rmi built:1 base:1 stages:1 committed:1");
    daemon.words("system prune -af");
    // What was removed leaves the disk a little behind the server's answers.
    let layers = store.path("root/layers").join(store.driver);
    let none = |folder: &std::path::Path| std::fs::read_dir(folder).is_ok_and(|mut dir| dir.next().is_none());
    let until = Instant::now() + Duration::from_secs(60);
    while !none(&layers) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = store.json("gc --json");
    let kinds = ["layer", "folder", "mountpoint", "config", "blob"];
    let items = said["items"].as_array().unwrap().iter();
    let left: Vec<_> = items.filter(|item| kinds.contains(&item["kind"].as_str().unwrap())).collect();
    assert!(left.is_empty(), "{left:#?}");
    for folder in [format!("layers/{}", store.driver), "mnt".into(), format!("trash/{}", store.driver)] {
        let left: Vec<_> =
            std::fs::read_dir(store.path("root").join(&folder)).into_iter().flatten().collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    assert_eq!(store.json("df --json")["snapshots"]["count"], 0);
    assert!(mounts_below(&store.path("root")).is_empty());
}
