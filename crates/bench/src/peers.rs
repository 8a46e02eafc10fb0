//! The tools that Vellum is measured beside.

use crate::run::{Error, measure, tool};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `podman` with a store of its own, on overlay.
pub(crate) fn podman(root: &Path) -> Result<Command, Error> {
    podman_with("overlay", root)
}

/// The same with a storage driver.
pub(crate) fn podman_with(driver: &str, root: &Path) -> Result<Command, Error> {
    let mut command = Command::new(tool("podman")?);
    // podman takes no more than 50 characters of the second.
    command.arg("--root").arg(root.join("podman")).arg("--runroot").arg(root.join("run")).args([
        "--storage-driver",
        driver,
        "--cgroup-manager",
        "cgroupfs",
        "--events-backend",
        "none",
    ]);
    Ok(command)
}

/// A containerd of its own, ended when dropped.
pub(crate) struct Containerd {
    server: Child,
    socket: PathBuf,
}

impl Containerd {
    /// Starts it and waits until it answers.
    pub(crate) fn start(root: &Path) -> Result<Self, Error> {
        let program = tool("containerd")?;
        tool("ctr")?;
        std::fs::create_dir_all(root).map_err(Error::at(format!("create {}", root.display())))?;
        let socket = root.join("s");
        let config = root.join("config.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            root.join("root"),
            root.join("state"),
            socket
        );
        std::fs::write(&config, text).map_err(Error::at(format!("write {}", config.display())))?;
        let server = Command::new(program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::at("start containerd"))?;
        let this = Self { server, socket };
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            match measure(this.ctr()?.arg("version")) {
                Ok(_) => return Ok(this),
                Err(error) if Instant::now() > give_up => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The client.
    pub(crate) fn ctr(&self) -> Result<Command, Error> {
        let mut command = Command::new(tool("ctr")?);
        command.arg("--address").arg(&self.socket);
        Ok(command)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A server that is gone already is what is wanted.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
