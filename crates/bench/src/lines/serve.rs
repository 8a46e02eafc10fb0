//! Vellum behind container engines, beside containerd's own overlayfs snapshotter.

use super::{Bench, Figures, Goal};
use crate::run::{Error, measure, shell};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vellum_testkit::engine;
use vellum_testkit::golang::{self, Form};

/// Layers of the image that containers are made on.
const DEPTH: &str = "10";

/// Layers that are unpacked at once where all can be: two for each core of a small machine.
const AT_ONCE: &str = "4";

/// Prepare, Mounts and Remove at the socket, for one client and for sixteen, and the server's peak memory after that.
pub(super) fn socket(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let suite = "github.com/containerd/containerd/contrib/snapshotservice";
    if let Some(reason) = golang::missing(suite, "golang-github-containerd-containerd-dev") {
        return Err(Error::Missing(reason));
    }
    let peer = golang::build("peer", Form::Program, &bench.work).map_err(Error::at("build the peer"))?;
    let folder = bench.output("socket", 0)?;
    let mut command = bench.vellum(&folder);
    command.args(["serve", "containerd", "--socket"]);
    let vellum = Server::start(&mut command, folder.join("v"))?;
    let mut command = Command::new(&peer);
    let overlayfs = Server::start(command.arg("serve").arg(folder.join("peer")), folder.join("p"))?;
    let mut figures = Vec::new();
    for (clients, rounds) in [("1", "300"), ("16", "60")] {
        let [mut ours, mut theirs] = [Vec::new(), Vec::new()];
        // The first round fills both sides' caches and is not counted.
        for run in 0..=bench.runs {
            for (server, times) in [(&vellum, &mut ours), (&overlayfs, &mut theirs)] {
                rustix::fs::sync();
                let (_, said) = measure(
                    Command::new(&peer).arg("load").arg(&server.socket).args([clients, rounds, DEPTH]),
                )?;
                let nanoseconds = said.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
                if run > 0 {
                    times.push(nanoseconds.ok_or_else(|| Error::Missing("the load's figures".into()))? / 1e6);
                }
            }
        }
        let what = format!("Prepare, Mounts and Remove, clients: {clients}, beside overlayfs");
        figures.push(Figures::ratio_of(what, "ms", middle(&mut ours), middle(&mut theirs), 0.7));
    }
    figures.push(Figures::value("peak memory of the server", "MiB", vellum.peak_mib()?, Goal::Value(64.0)));
    Ok(figures)
}

/// A build by Docker's engine on its containerd image store.
pub(super) fn docker(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let folder = bench.output("docker", 0)?;
    let layout = folder.join("image");
    if let Some(reason) = engine::no_shell() {
        return Err(Error::Missing(reason));
    }
    engine::shell_image(&layout).map_err(Error::at("make the image"))?;
    let image = folder.join("image.tar");
    shell(r#"tar -cf "$1" -C "$2" ."#, &[&image, &layout])?;
    let what = "docker build (BuildKit), 20 ENV and ARG steps between two COPY, beside overlayfs";
    let mut command = script(bench, &folder, "docker.sh", &image)?;
    let (_, said) = measure(&mut command)?;
    Ok(vec![Figures { goal: Goal::None, ..timed(&said, "build", what, 1.0)? }])
}

/// The real image unpacked by containerd 2.
pub(super) fn unpack(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let layout = bench.real.as_ref().ok_or_else(|| Error::Missing("--real LAYOUT".into()))?;
    let image = bench.work.join("real-for-containerd.tar");
    if !image.exists() {
        let mut command = Command::new("python3");
        let partial = bench.work.join("real-for-containerd.partial");
        command.arg(engine::scripts().join("plain.py")).arg(layout).arg(&partial).arg(engine::IMAGE);
        measure(&mut command)?;
        std::fs::rename(&partial, &image).map_err(Error::at(format!("write {}", image.display())))?;
    }
    let folder = bench.output("unpack", 0)?;
    let inside = folder.join("image.tar");
    // On the file system that is measured, which is another.
    std::fs::copy(&image, &inside).map_err(Error::at(format!("write {}", inside.display())))?;
    let suite = "github.com/containerd/containerd/snapshots";
    if let Some(reason) = golang::missing(suite, "golang-github-containerd-containerd-dev") {
        return Err(Error::Missing(reason));
    }
    let built = golang::build("rebase", Form::Program, &bench.work).map_err(Error::at("build a client"))?;
    // Where it is seen from inside the other system.
    let rebase = folder.join("rebase");
    measure(Command::new("cp").arg(built).arg(&rebase))?;
    let mut command = script(bench, &folder, "unpack.sh", &inside)?;
    let (_, said) = measure(command.arg(rebase).arg(AT_ONCE))?;
    let one = "containerd unpacks the real image, beside overlayfs";
    let all = "the same, all layers at once as containerd 2.2 does it (rebase)";
    Ok(vec![
        Figures { goal: Goal::None, ..timed(&said, "unpack", one, 1.0)? },
        timed(&said, "rebase", all, 1.1)?,
    ])
}

/// A script of the engines, on the later of the other systems, that times both sides itself.
fn script(bench: &Bench, folder: &Path, name: &str, image: &Path) -> Result<Command, Error> {
    let root = engine::system("forky").map_err(Error::Missing)?;
    let mut command = engine::script(&root, folder, &bench.vellum, "overlay", name);
    command.arg(image).arg(bench.runs.to_string());
    Ok(command)
}

/// The figures of a line `TIMED WORD …` of what a script said.
fn timed(said: &str, word: &str, what: &str, goal: f64) -> Result<Figures, Error> {
    let line = said.lines().find_map(|line| line.strip_prefix("TIMED ")?.strip_prefix(word));
    let times: Vec<f64> = line.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    match times[..] {
        [ours, theirs] => Ok(Figures::ratio_of(what, "s", ours / 1e3, theirs / 1e3, goal)),
        _ => Err(Error::Missing(format!("the figures of {what}"))),
    }
}

fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A snapshotter behind a socket; killed when dropped.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    fn start(command: &mut Command, socket: PathBuf) -> Result<Self, Error> {
        command.arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(Error::at("start a snapshotter"))?;
        let this = Self { process, socket };
        let give_up = Instant::now() + Duration::from_secs(20);
        while !this.socket.exists() {
            if Instant::now() > give_up {
                return Err(Error::Missing(format!("a server at {}", this.socket.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
    }

    /// The most memory that it has had so far.
    fn peak_mib(&self) -> Result<f64, Error> {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(&path).map_err(Error::at(format!("read {path}")))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).ok_or_else(|| Error::Missing(format!("VmHWM in {path}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that is gone already is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
