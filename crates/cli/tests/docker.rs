//! Docker's graph-driver plugin, through a real socket: the protocol, hostile requests, a server that is killed, docker's own suite.
#![allow(missing_docs)]

mod common;

use common::plugin::{Server, tar};
use common::{Store, drivers, is_root};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use vellum_testkit::golang::{self, Form};
use vellum_testkit::skip;

fn on_each(test: &str, work: impl Fn(&Store, &mut Server)) {
    if !is_root() {
        return vellum_testkit::skip::record(test, "needs root");
    }
    for driver in drivers(test) {
        let store = Store::new(driver);
        let mut server = Server::start(&store);
        work(&store, &mut server);
        server.kill();
        assert_sound(&store);
    }
}

/// Nothing is wrong with the store, and nothing is there that nobody needs.
fn assert_sound(store: &Store) {
    store.words("check").ok();
    let said = store.json("gc --dry-run --json");
    // What was removed a moment ago may still wait to be deleted; locks of the dead go with the next collection.
    let left: Vec<_> = said["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["kind"] != "trash" && item["kind"] != "lock")
        .collect();
    assert!(left.is_empty(), "{left:#?}");
}

fn layer(id: &str, parent: &str) -> String {
    format!(r#"{{"ID":"{id}","Parent":"{parent}"}}"#)
}

fn base(store: &Store) -> Vec<u8> {
    tar(store, "base", |folder| {
        std::fs::create_dir(folder.join("etc")).unwrap();
        std::fs::write(folder.join("etc/name"), "first\n").unwrap();
        std::fs::write(folder.join("large"), vec![7; 3 << 20]).unwrap();
        std::fs::hard_link(folder.join("large"), folder.join("etc/linked")).unwrap();
    })
}

#[test]
fn root_docker_makes_fills_and_tells_layers_through_the_socket() {
    on_each("root_docker_makes_fills_and_tells_layers_through_the_socket", |store, server| {
        assert_eq!(server.done("Plugin.Activate", "")["Implements"][0], "GraphDriver");
        let home = r#"{"Home":"/var/lib/docker/vellum","Opts":null,"UIDMaps":null,"GIDMaps":[]}"#;
        server.done("GraphDriver.Init", home);
        let mapped = home
            .replace("null}", "")
            .replace(r#""UIDMaps":null"#, r#""UIDMaps":[{"container_id":0,"host_id":100000,"size":65536}]"#);
        assert!(server.fails("GraphDriver.Init", &mapped).contains("userns-remap"));
        let option = home.replace("null,\"U", "[\"dm.basesize=1G\"],\"U");
        assert!(server.fails("GraphDriver.Init", &option).contains("dm.basesize"));
        let can = server.done("GraphDriver.Capabilities", "{}");
        assert_eq!(can["Capabilities"]["ReproducesExactDiffs"], true);
        let status = server.done("GraphDriver.Status", "{}").to_string();
        assert!(status.contains("/var/lib/docker/vellum") && status.contains(store.driver), "{status}");

        let tar = base(store);
        for (id, parent, chunked) in [("a", "", true), ("b", "a", false)] {
            server.done("GraphDriver.Create", &layer(id, parent));
            let applied = server.apply(id, parent, &tar, chunked);
            assert_eq!(applied["Size"], (3 << 20) + 6, "{applied}");
            let given = server.diff(id, parent);
            assert!(given.status == 200 && given.body.unwrap() == tar);
        }
        let quota = r#"{"ID":"q","Parent":"b","StorageOpt":{"size":"10M"}}"#;
        if has_quota(store) {
            server.done("GraphDriver.CreateReadWrite", quota);
            let got = server.done("GraphDriver.Get", &layer("q", ""));
            let big = Path::new(got["Dir"].as_str().unwrap()).join("big");
            let error = std::fs::write(big, vec![1; 20 << 20]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded);
            server.done("GraphDriver.Put", &layer("q", ""));
            let facts = server.done("GraphDriver.GetMetadata", &layer("q", ""));
            assert_eq!(facts["Metadata"]["Size limit"], (10 << 20).to_string(), "{facts}");
            server.done("GraphDriver.Remove", &layer("q", ""));
        } else {
            assert!(server.fails("GraphDriver.CreateReadWrite", quota).contains("cannot limit"));
        }
        server.done("GraphDriver.CreateReadWrite", &layer("c-init", "b"));
        server.done("GraphDriver.CreateReadWrite", &layer("c", "c-init"));
        let got = server.done("GraphDriver.Get", &layer("c", ""));
        let path = PathBuf::from(got["Dir"].as_str().unwrap());
        std::fs::write(path.join("etc/new"), "12345").unwrap();
        std::fs::remove_file(path.join("etc/name")).unwrap();
        let changes = server.done("GraphDriver.Changes", &layer("c", "c-init"));
        let expected = serde_json::json!([
            {"Path": "/etc", "Kind": 0}, {"Path": "/etc/name", "Kind": 2}, {"Path": "/etc/new", "Kind": 1}
        ]);
        assert_eq!(changes["Changes"], expected);
        assert_eq!(server.done("GraphDriver.DiffSize", &layer("c", "c-init"))["Size"], 5);
        assert_eq!(server.done("GraphDriver.Exists", &layer("c", ""))["Exists"], true);
        assert_eq!(server.done("GraphDriver.Exists", &layer("d", ""))["Exists"], false);
        assert!(server.done("GraphDriver.GetMetadata", &layer("c", ""))["Metadata"]["Layer"].is_string());
        assert!(server.fails("GraphDriver.Remove", &layer("b", "")).contains("lies on it"));
        assert!(server.fails("GraphDriver.Get", &layer("d", "")).contains('d'));
        server.done("GraphDriver.Put", &layer("c", ""));
        assert!(!path.exists());
        server.done("GraphDriver.Get", &layer("c", ""));
        server.done("GraphDriver.Cleanup", "{}");
        assert!(!path.exists(), "left mounted by the daemon");
        for id in ["c", "c-init", "b", "a", "never"] {
            server.done("GraphDriver.Remove", &layer(id, ""));
        }
    });
}

#[test]
fn root_hostile_requests_are_refused_and_the_server_goes_on() {
    on_each("root_hostile_requests_are_refused_and_the_server_goes_on", |store, server| {
        let status = |name: &str, body: &[u8], framing: &str| server.send(name, body, framing).status;
        assert_eq!(status("GraphDriver.Destroy", b"{}", ""), 404);
        assert_eq!(status("../GraphDriver.Get", b"{}", ""), 404);
        assert_eq!(server.try_send("GET", "Plugin.Activate", b"", "").unwrap().status, 404);
        assert_eq!(status("GraphDriver.Get", b"{", ""), 400);
        assert_eq!(status("GraphDriver.Get", br#"{"ID":""}"#, ""), 400);
        assert_eq!(status("GraphDriver.ApplyDiff?id=%zz", b"", ""), 400);
        let large = [&br#"{"ID":""#[..], &vec![b'x'; 2 << 20][..], &br#""}"#[..]].concat();
        assert_eq!(status("GraphDriver.Create", &large, ""), 413);
        server.done("GraphDriver.Create", &layer("a", ""));
        let good = base(store);
        let escaping = tar(store, "escaping", |folder| std::fs::write(folder.join("x"), "x").unwrap());
        let escaping =
            String::from_utf8(escaping).unwrap().replacen("./x\0\0\0\0\0", "../../x\0", 1).into_bytes();
        for bad in [&good[..good.len() / 2], b"no tar at all", &escaping] {
            for chunked in [false, true] {
                let answer = server.apply("a", "", bad, chunked);
                assert!(answer["Err"].is_string(), "{answer}");
            }
        }
        // Clients that go away in the middle, and one that talks nonsense.
        let mut cut = UnixStream::connect(&server.socket).unwrap();
        write!(
            cut,
            "POST /GraphDriver.ApplyDiff?id=a HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n",
            good.len()
        )
        .unwrap();
        cut.write_all(&good[..good.len() / 3]).unwrap();
        drop(cut);
        UnixStream::connect(&server.socket).unwrap().write_all(&[0xff; 5000]).unwrap();
        assert_eq!(
            server.try_send("POST", "GraphDriver.Get", b"", "Content-Length: -1\r\n").unwrap().status,
            400
        );
        // The layer is as it was: it can be filled, as soon as the request that was cut off has been undone.
        let answer = server.apply("a", "", &good, true);
        assert!(answer["Size"].is_number(), "{answer}");
        server.done("GraphDriver.Create", &layer("b", "a"));
        assert!(server.fails("GraphDriver.Create", &layer("b", "a")).contains("there is"));
        assert!(server.fails("GraphDriver.Create", &layer("c", "nobody")).contains("nobody"));
        assert!(server.is_alive());
        for id in ["b", "a"] {
            server.done("GraphDriver.Remove", &layer(id, ""));
        }
    });
}

#[test]
fn root_a_diff_that_fails_is_never_taken_for_a_tar() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    let server = Server::start(&store);
    assert_eq!(server.diff("nobody", "").status, 500);
    let tar = base(&store);
    server.done("GraphDriver.Create", &layer("a", ""));
    server.apply("a", "", &tar, true);
    let folder = std::fs::read_dir(store.path("root/overlay"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("diff/large"))
        .find(|file| file.exists())
        .unwrap();
    // Much was sent by the time the digest turns out to be another: the answer breaks off.
    std::fs::write(&folder, vec![8; 3 << 20]).unwrap();
    let broken = server.diff("a", "");
    assert!(broken.status == 200 && broken.body.is_err());
    // Nothing was sent yet.
    std::fs::remove_file(&folder).unwrap();
    std::fs::remove_file(folder.with_file_name("etc/linked")).unwrap();
    let failed = server.diff("a", "");
    assert!(failed.status == 500 || failed.body.is_err());
    server.done("GraphDriver.Remove", &layer("a", ""));
}

#[test]
fn root_a_server_killed_at_any_time_loses_nothing() {
    on_each("root_a_server_killed_at_any_time_loses_nothing", |store, server| {
        let tar = base(store);
        server.done("GraphDriver.Create", &layer("base", ""));
        server.apply("base", "", &tar, true);
        server.done("GraphDriver.Create", &layer("c", "base"));
        let got = server.done("GraphDriver.Get", &layer("c", ""));
        let path = PathBuf::from(got["Dir"].as_str().unwrap());
        for round in 0..8_u64 {
            let id = format!("r{round}");
            let answered = std::thread::scope(|scope| {
                let (server_ref, tar) = (&*server, &tar);
                let id = &id;
                let at_work = scope.spawn(move || {
                    let mut answered = Vec::new();
                    let json = layer(id, "base");
                    let name = format!("GraphDriver.ApplyDiff?id={id}&parent=base");
                    for (call, name, body) in [
                        ("created", "GraphDriver.Create", json.as_bytes()),
                        ("filled", &name, &tar[..]),
                        ("removed", "GraphDriver.Remove", json.as_bytes()),
                    ] {
                        match server_ref.try_send("POST", name, body, "") {
                            Ok(answer) if answer.body.is_ok() => answered.push(call),
                            _ => break,
                        }
                    }
                    answered
                });
                std::thread::sleep(std::time::Duration::from_millis(3 + round * 9));
                let killed = Command::new("kill").args(["-9", &server_ref.pid().to_string()]).status();
                assert!(killed.unwrap().success());
                at_work.join().unwrap()
            });
            server.kill();
            std::fs::write(path.join("alive"), id.as_bytes()).unwrap();
            *server = Server::start(store);
            let exists = server.done("GraphDriver.Exists", &layer(&id, ""))["Exists"] == true;
            let has = |what| answered.contains(&what);
            assert!(!has("created") || has("removed") || exists || has("filled"), "{answered:?}");
            if has("filled") && exists {
                assert!(server.diff(&id, "base").body.unwrap() == tar, "{answered:?}");
            }
            assert!(!has("removed") || !exists, "{answered:?}");
            server.done("GraphDriver.Remove", &layer(&id, ""));
        }
        assert_eq!(server.done("GraphDriver.Get", &layer("c", ""))["Dir"], path.to_str().unwrap());
        for _ in 0..2 {
            server.done("GraphDriver.Put", &layer("c", ""));
        }
        assert!(!path.exists());
        for id in ["c", "base"] {
            server.done("GraphDriver.Remove", &layer(id, ""));
        }
    });
}

#[test]
fn root_dockers_own_suite_passes() {
    if !is_root() {
        skip!("needs root");
    }
    for (import, package) in [
        ("github.com/docker/docker/daemon/graphdriver/graphtest", "golang-github-docker-docker-dev"),
        ("github.com/vbatts/tar-split/tar/storage", "golang-github-vbatts-tar-split-dev"),
        ("gotest.tools/assert", "golang-github-gotestyourself-gotest.tools-dev"),
    ] {
        if let Some(reason) = golang::missing(import, package) {
            skip!("{reason}");
        }
    }
    let suite = golang::build("graphdriver", Form::Tests, Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let listed = Command::new(&suite).args(["-test.list", "."]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let tests: Vec<&str> = listed.lines().filter(|line| line.starts_with("Test")).collect();
    assert_eq!(tests.len(), 8, "{listed}");
    for driver in drivers("root_dockers_own_suite_passes") {
        for test in &tests {
            let store = Store::new(driver);
            let server = Server::start(&store);
            let mut command = Command::new(&suite);
            command.args(["-test.v", "-test.run", &format!("^{test}$")]).env("VELLUM_SOCKET", &server.socket);
            command.env("TMPDIR", store.dir.path());
            if has_quota(&store) {
                command.env("VELLUM_QUOTA", "1");
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let log = || std::fs::read_to_string(store.path("server.log")).unwrap_or_default();
            assert!(output.status.success(), "{driver} {test}: {said}\n{}", log());
            if !said.contains(&format!("--- PASS: {test}")) {
                vellum_testkit::skip::record(
                    &format!("root_dockers_own_suite_passes, {test} on {driver}"),
                    "the driver has no quota",
                );
            }
        }
    }
}

fn has_quota(store: &Store) -> bool {
    let info = store.json("info --json");
    let abilities = info["capabilities"].as_array().cloned().unwrap_or_default();
    abilities.iter().any(|one| one["ability"] == "quota" && one["support"] != "no")
}
