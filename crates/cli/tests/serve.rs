//! `vellum serve` as service managers run it: sockets, readiness, signals, metrics, configuration files.

mod common;

use common::user::User;
use common::{Ran, Store, is_root};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vellum_testkit::skip;

/// A server, killed when the test ends.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it, and waits until it says that it is ready.
    fn start(store: &Store, command: &mut Command) -> Self {
        let ready = store.path("notify");
        let _ = std::fs::remove_file(&ready);
        let told = UnixDatagram::bind(&ready).unwrap();
        told.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let log = store.path("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = command.env("NOTIFY_SOCKET", &ready).stderr(file).stdout(Stdio::null()).spawn().unwrap();
        let server = Self { child, log };
        let mut message = [0; 100];
        let length = told.recv(&mut message).unwrap_or_else(|e| panic!("{e}: {}", server.log()));
        assert!(message[..length].starts_with(b"READY=1"));
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Sends a signal, and gives the exit code.
    fn end(&mut self, signal: rustix::process::Signal) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it did not end: {}", self.log());
    }
}

fn serve(store: &Store, line: &str) -> Command {
    let mut command = store.command();
    command.args(line.split_whitespace());
    command
}

/// What an HTTP/1 server answers.
fn ask(mut stream: impl std::io::Read + std::io::Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn root_a_server_is_ready_ends_well_and_is_started_again_after_a_kill() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    for (engine, socket) in [("containerd", store.path("c.sock")), ("docker", store.path("d.sock"))] {
        let line = format!("serve {engine} --socket {}", socket.display());
        let mut killed = Server::start(&store, &mut serve(&store, &line));
        assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        UnixStream::connect(&socket).unwrap();
        let second = Ran::of(serve(&store, &line).output().unwrap()).fails(4);
        assert!(second.contains("another server does"), "{second}");
        assert_eq!(killed.end(rustix::process::Signal::KILL), None);
        assert!(socket.exists(), "a killed server leaves its socket");

        let mut server = Server::start(&store, &mut serve(&store, &line));
        UnixStream::connect(&socket).unwrap();
        assert_eq!(server.end(rustix::process::Signal::TERM), Some(0), "{}", server.log());
        assert!(!socket.exists());
        assert!(server.log().contains("stopping"), "{}", server.log());
    }
    store.words("check").ok();
}

#[test]
fn root_sockets_come_from_the_service_manager() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("vfs");
    let socket = store.path("d.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // As systemd does it: the socket is descriptor 3, and the variables name the process that is to have it.
    let line = format!("exec \"$@\" serve docker --socket {} 3<&0 0</dev/null", socket.display());
    let mut command = Command::new("bash");
    command.args(["-c", &format!("export LISTEN_PID=$$ LISTEN_FDS=1; {line}"), "bash"]);
    command.arg(env!("CARGO_BIN_EXE_vellum")).arg("--root").arg(store.path("root")).args(["--driver", "vfs"]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let mut server = Server::start(&store, &mut command);
    let request =
        "POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let answer = ask(UnixStream::connect(&socket).unwrap(), request);
    assert!(answer.contains("GraphDriver"), "{answer}");
    assert_eq!(server.end(rustix::process::Signal::TERM), Some(0));
    assert!(socket.exists(), "the service manager's socket stays");
}

#[test]
fn root_a_file_serves_several_doors_and_prometheus() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = |name: &str| store.path(name).display().to_string();
    let config = format!(
        "metrics = '{free}'\n[[containerd]]\nsocket = '{}'\n[[containerd]]\nname = 'copies'\ndriver = 'vfs'\nsocket = '{}'\n\
         [[docker]]\nsocket = '{}'\n",
        path("a.sock"),
        path("b.sock"),
        path("c.sock")
    );
    std::fs::write(store.path("serve.toml"), config).unwrap();
    let line = format!("serve --log-format json --config {}", path("serve.toml"));
    let mut server = Server::start(&store, &mut serve(&store, &line));
    let doors: Vec<serde_json::Value> = server
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["message"] == "serving")
        .collect();
    let told: Vec<_> = doors.iter().map(|line| (line["door"].as_str(), line["driver"].as_str())).collect();
    let wanted =
        [("containerd/vellum", "overlay"), ("containerd/copies", "vfs"), ("docker/vellum", "overlay")];
    assert_eq!(told, wanted.map(|(door, driver)| (Some(door), Some(driver))));
    for name in ["a.sock", "b.sock", "c.sock"] {
        UnixStream::connect(store.path(name)).unwrap();
    }
    let activate =
        "POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    ask(UnixStream::connect(store.path("c.sock")).unwrap(), activate);
    let scrape = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = ask(std::net::TcpStream::connect(free).unwrap(), scrape);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("vellum_store_layers{"), "{answer}");
    assert!(answer.contains("vellum_fs_bytes{"), "{answer}");
    let other = ask(
        std::net::TcpStream::connect(free).unwrap(),
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
    assert_eq!(server.end(rustix::process::Signal::INT), Some(0));
}

#[test]
fn root_what_cannot_be_served_is_said() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    let wrong = store.path("wrong.toml");
    std::fs::write(&wrong, "[[containerd]]\nnmae = 'x'\n").unwrap();
    let error = store.words(&format!("serve --config {}", wrong.display())).fails(2);
    assert!(error.contains("line 2") && error.contains("nmae"), "{error}");
    store.words("serve").fails(2);
    store.words("serve --config /nowhere/at/all").fails(3);
    let taken = store.path("file");
    std::fs::write(&taken, "precious").unwrap();
    let error = store.words(&format!("serve docker --socket {}", taken.display())).fails(1);
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read(&taken).unwrap(), b"precious");
    assert!(!store.path("root").exists(), "no store was made for it");
}

#[test]
fn root_an_ordinary_user_is_told_that_only_root_can_serve() {
    if !is_root() {
        skip!("needs root");
    }
    let user = User::new(64_123, false);
    let error = user.shell("exec $V serve containerd --socket x.sock").fails(8);
    assert!(error.contains("only root"), "{error}");
    assert!(!user.path("x.sock").exists());
}

#[test]
fn loop_a_server_makes_a_pool_larger_as_containers_fill_it() {
    if !is_root() || !Command::new("mkfs.xfs").arg("-V").output().is_ok_and(|out| out.status.success()) {
        skip!("needs root and xfsprogs");
    }
    let store = Store::new("overlay");
    store.words("init --pool --size 300M").ok();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = store.path("a.sock").display().to_string();
    let line = format!("serve containerd --socket {socket} --metrics {free}");
    let mut server = Server::start(&store, &mut serve(&store, &line));
    let scrape = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = ask(std::net::TcpStream::connect(free).unwrap(), scrape);
    assert!(answer.contains("vellum_pool_bytes{") && answer.contains("kind=\"missing\""), "{answer}");
    assert!(answer.contains("vellum_pool_failed{"), "{answer}");
    let before = store.json("pool status --json")["size"].as_u64().unwrap();
    // Nobody asks the store for this.
    std::fs::write(store.path("root/pool/data/overlay/written"), vec![1; 150 << 20]).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !server.log().contains("the pool is larger now") {
        assert!(Instant::now() < until, "it did not grow: {}", server.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(store.json("pool status --json")["size"].as_u64().unwrap() > before);
    std::fs::remove_file(store.path("root/pool/data/overlay/written")).unwrap();
    assert_eq!(server.end(rustix::process::Signal::TERM), Some(0));
}
