//! Docker daemons of their own, with one of docker's storage drivers or with Vellum behind its plugin.

use crate::run::{Error, measure, tool};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of Debian's package docker.io: another client on the path may be too new for its daemon.
const CLIENT: &str = "/usr/bin/docker";

/// How long a server may take to answer first.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon; ended, with the plugin, when dropped.
pub(crate) struct Docker {
    daemon: Child,
    plugin: Option<(Child, PathBuf)>,
    folder: PathBuf,
}

impl Docker {
    /// A daemon with one of docker's own storage drivers.
    pub(crate) fn start(folder: &Path, driver: &str) -> Result<Self, Error> {
        let program = tool("dockerd")?;
        if !Path::new(CLIENT).is_file() {
            return Err(Error::Missing(CLIENT.into()));
        }
        std::fs::create_dir_all(folder).map_err(Error::at(format!("create {}", folder.display())))?;
        let mut command = Command::new(program);
        command.args(["--experimental", "--bridge=none", "--iptables=false", "--ip6tables=false"]);
        command.args(["--storage-driver", driver]).arg("--data-root").arg(folder.join("data"));
        command.arg("--exec-root").arg(folder.join("exec")).arg("--pidfile").arg(folder.join("pid"));
        command.arg("--host").arg(host(folder));
        let this = Self { daemon: quiet(&mut command)?, plugin: None, folder: folder.to_owned() };
        let give_up = Instant::now() + PATIENCE;
        loop {
            match measure(&mut this.words(&["version"])) {
                Ok(_) => return Ok(this),
                Err(error) if Instant::now() > give_up => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// A daemon whose storage driver is the plugin that `vellum`, a command with its store, serves.
    pub(crate) fn with_plugin(folder: &Path, mut vellum: Command) -> Result<Self, Error> {
        let name = format!("vellum-bench-{}", std::process::id());
        let socket = Path::new("/run/docker/plugins").join(format!("{name}.sock"));
        let plugin = quiet(vellum.args(["serve", "docker", "--socket"]).arg(&socket))?;
        let mut plugin = Plugin(Some((plugin, socket)));
        let give_up = Instant::now() + PATIENCE;
        while plugin.0.as_ref().is_some_and(|(_, socket)| !socket.exists()) {
            if Instant::now() > give_up {
                return Err(Error::Missing("the plugin's socket".into()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut this = Self::start(folder, &name)?;
        this.plugin = plugin.0.take();
        Ok(this)
    }

    /// The client.
    pub(crate) fn words(&self, words: &[&str]) -> Command {
        let mut command = Command::new(CLIENT);
        command.env("DOCKER_CONFIG", &self.folder).env("DOCKER_BUILDKIT", "0");
        command.arg("--host").arg(host(&self.folder)).args(words);
        command
    }
}

/// A plugin that ends when no daemon has taken it over.
struct Plugin(Option<(Child, PathBuf)>);

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some((child, socket)) = &mut self.0 {
            end(child);
            remove(socket);
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        end(&mut self.daemon);
        drop(Plugin(self.plugin.take()));
    }
}

/// Ends a server as service managers do. One that is gone already is what is wanted.
fn end(child: &mut Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn remove(socket: &Path) {
    for path in [socket.to_owned(), socket.with_extension("sock.lock")] {
        let _ = std::fs::remove_file(path);
    }
}

fn host(folder: &Path) -> String {
    format!("unix://{}", folder.join("s").display())
}

fn quiet(command: &mut Command) -> Result<Child, Error> {
    let name = command.get_program().display().to_string();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(Error::at(format!("start {name}")))
}
