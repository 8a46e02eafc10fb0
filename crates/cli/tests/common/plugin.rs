//! A server of docker's plugin protocol, and a client that speaks it as docker's daemon does.

use super::Store;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A server process; killed when dropped.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
}

/// What came back: the status, and the body if it came whole.
pub struct Answer {
    pub status: u16,
    pub body: std::io::Result<Vec<u8>>,
}

impl Server {
    pub fn start(store: &Store) -> Self {
        Self::at(store, store.path("plugin.sock"))
    }

    pub fn at(store: &Store, socket: PathBuf) -> Self {
        let log =
            std::fs::OpenOptions::new().append(true).create(true).open(store.path("server.log")).unwrap();
        let mut command = store.command();
        command.args(["serve", "docker", "--socket"]).arg(&socket).env("VELLUM_LOG", "debug");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { child, socket };
        let until = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&server.socket).is_err() {
            let ended = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(store.path("server.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < until, "{ended:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// As a power switch would.
    pub fn kill(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A call with JSON; what it answers.
    pub fn call(&self, name: &str, json: &str) -> serde_json::Value {
        let answer = self.send(name, json.as_bytes(), "");
        assert_eq!(answer.status, 200, "{name} {json}");
        serde_json::from_slice(&answer.body.unwrap()).unwrap()
    }

    /// A call that must succeed.
    #[track_caller]
    pub fn done(&self, name: &str, json: &str) -> serde_json::Value {
        let answer = self.call(name, json);
        assert_eq!(answer.get("Err"), None, "{name} {json}");
        answer
    }

    /// A call that must fail; what it complains of.
    #[track_caller]
    pub fn fails(&self, name: &str, json: &str) -> String {
        self.call(name, json)["Err"].as_str().unwrap().to_owned()
    }

    pub fn apply(&self, id: &str, parent: &str, tar: &[u8], chunked: bool) -> serde_json::Value {
        let name = format!("GraphDriver.ApplyDiff?id={id}&parent={parent}");
        let answer = match chunked {
            false => self.send(&name, tar, ""),
            true => {
                let mut body = Vec::new();
                for chunk in tar.chunks(10_007) {
                    write!(body, "{:x}\r\n", chunk.len()).unwrap();
                    body.extend_from_slice(chunk);
                    body.extend_from_slice(b"\r\n");
                }
                body.extend_from_slice(b"0\r\n\r\n");
                self.send(&name, &body, "Transfer-Encoding: chunked\r\n")
            }
        };
        assert_eq!(answer.status, 200);
        serde_json::from_slice(&answer.body.unwrap()).unwrap()
    }

    pub fn diff(&self, id: &str, parent: &str) -> Answer {
        self.send("GraphDriver.Diff", format!(r#"{{"ID":"{id}","Parent":"{parent}"}}"#).as_bytes(), "")
    }

    /// A request as docker's daemon writes it: an empty host, no content type. `framing` replaces the length.
    pub fn send(&self, name: &str, body: &[u8], framing: &str) -> Answer {
        self.try_send("POST", name, body, framing).unwrap()
    }

    pub fn try_send(&self, method: &str, name: &str, body: &[u8], framing: &str) -> std::io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)?;
        let length = format!("Content-Length: {}\r\n", body.len());
        let framing = if framing.is_empty() { &length } else { framing };
        write!(stream, "{method} /{name} HTTP/1.1\r\nHost: \r\nConnection: close\r\n{framing}\r\n")?;
        // A server that refuses early does not read it all.
        let _ = stream.write_all(body);
        answer(&mut BufReader::new(stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(reader: &mut BufReader<UnixStream>) -> std::io::Result<Answer> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|number| number.parse().ok());
    let status = status.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let (mut length, mut chunked) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("transfer-encoding", "chunked")) => chunked = true,
            None if header.is_empty() => break,
            _ => {}
        }
    }
    if !chunked {
        let mut body = vec![0; length];
        let read = reader.read_exact(&mut body);
        return Ok(Answer { status, body: read.map(|()| body) });
    }
    Ok(Answer { status, body: chunks(reader) })
}

fn chunks(reader: &mut BufReader<UnixStream>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let cut = |_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let length = usize::from_str_radix(line.trim_end(), 16).map_err(cut)?;
        let mut chunk = vec![0; length + 2];
        reader.read_exact(&mut chunk)?;
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunk[..length]);
    }
}

/// A tar of plain files, made by tar itself: two layers' worth of what archives find hard.
pub fn tar(store: &Store, name: &str, make: impl FnOnce(&std::path::Path)) -> Vec<u8> {
    let folder = store.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    make(&folder);
    let mut command = std::process::Command::new("tar");
    let output = command.arg("-C").arg(&folder).args(["-c", "."]).output().unwrap();
    assert!(output.status.success());
    std::fs::remove_dir_all(&folder).unwrap();
    output.stdout
}
