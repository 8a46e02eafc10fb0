//! One throwaway machine: QEMU without acceleration, a kernel of Debian's, a root file system in memory.
//!
//! ```text
//!   kernel-<suite>-v1/vmlinuz    in the cache, with modules/ (images/kernel.sh)
//!   root                         cpio: busybox, the modules, programs of this machine with their libraries, /init (init.sh), /job
//!   disks                        sparse files, /dev/disk/NAME inside; `tmp` is always there, an ext4 with verity on /tmp
//!   console                      the machine's serial line: what the job says, then `vellum-vm: exit N`
//! ```

use super::cpio::{Archive, find};
use crate::image;
use crate::run::{Error, run};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use vellum_testkit::scratch::TAG;

/// Programs of this machine that tests call, and what init needs.
const PROGRAMS: &[&str] = &[
    "mkfs.ext4",
    "mkfs.btrfs",
    "mkfs.xfs",
    "mkfs.erofs",
    "mount",
    "umount",
    "losetup",
    "filefrag",
    "setpriv",
    "unshare",
    "nsenter",
];
/// A machine that has said nothing by then hangs in its firmware or its kernel, as about one of twenty does on a busy host.
const SILENCE: Duration = Duration::from_secs(60);
const BOOTS: u32 = 4;
const MEMORY_MIB: u32 = 2048;
const SAYS: &str = "vellum-vm: ";

/// What a machine is made for.
pub(super) struct Job<'a> {
    /// A program of this machine's; its libraries come along.
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [String],
    pub(super) variables: &'a [(String, String)],
    /// Empty disks beside `tmp`: what /dev/disk calls each, and its size in MiB.
    pub(super) disks: &'a [(&'a str, u64)],
    /// All of it must be done by then.
    pub(super) time: Duration,
}

/// Runs the job on a kernel of that suite of Debian's, and has `each` see what it says, line by line; its exit status.
pub(super) fn perform(suite: &str, job: &Job<'_>, each: &mut dyn FnMut(&str)) -> Result<i32, Error> {
    let kernel = image::kernel(suite)?;
    let place = Place::new()?;
    let root = place.0.join("root");
    write_root(&kernel, job, &root, &place.0)?;
    let mut command = command(&kernel, &root);
    for (name, mib) in [("tmp", 16 << 10)].iter().chain(job.disks) {
        let path = place.0.join(format!("{name}.disk"));
        File::create(&path)
            .and_then(|file| file.set_len(mib << 20))
            .map_err(Error::at(format!("make {}", path.display())))?;
        let drive =
            format!("file={},if=none,id={name},format=raw,cache=unsafe,discard=unmap", path.display());
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
    }
    for _ in 0..BOOTS {
        if let Some(status) = boot(&mut command, job.time, each)? {
            return Ok(status);
        }
        eprintln!("the machine said nothing for a minute: once more");
    }
    Err(Error::Failed(format!("{command:?}")))
}

/// A folder that goes with the machine.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self, Error> {
        // By this name it is found when this process is killed.
        let place = std::env::temp_dir().join(format!("{TAG}{}-0-vm", std::process::id()));
        std::fs::create_dir_all(&place).map_err(Error::at(format!("make {}", place.display())))?;
        Ok(Self(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write_root(kernel: &Path, job: &Job<'_>, root: &Path, work: &Path) -> Result<(), Error> {
    let mut archive = Archive::create(root)?;
    archive.copy(&find("busybox")?, "bin/busybox")?;
    archive.file("init", 0o755, include_bytes!("init.sh"))?;
    archive.copy_folder(&kernel.join("modules"), Path::new(""))?;
    for program in PROGRAMS {
        archive.program(&find(program)?)?;
    }
    // Without what only a debugger reads: ten times smaller.
    let stripped = work.join("program");
    run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(job.program))?;
    archive.copy(&stripped, "job/program")?;
    archive.libraries(job.program)?;
    let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let mut script = "#!/bin/sh\ncd /tmp\n".to_owned();
    for (name, value) in job.variables {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    let arguments: Vec<_> = job.arguments.iter().map(|word| quoted(word)).collect();
    script.push_str(&format!("exec /job/program {} 2>&1\n", arguments.join(" ")));
    archive.file("job/run", 0o755, script.as_bytes())?;
    archive.finish()
}

fn command(kernel: &Path, root: &Path) -> Command {
    // It goes with this process, also when that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "q35,usb=off"]);
    command.args(["-accel", "tcg,thread=multi", "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
    // After a cmpxchg16b QEMU 7.2 was seen to have nonsense in the flags, and an interrupt just then broke the kernel: panics, or "free(): invalid pointer". Without it
    // the kernel has another way.
    command.args(["-cpu", "max,cx16=off"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.args(["-net", "none", "-append"]);
    command.arg(
        "console=ttyS0 quiet loglevel=2 mitigations=off nokaslr random.trust_cpu=on panic=-1 rdinit=/init",
    );
    command.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One boot; `None` if nothing came of it.
fn boot(command: &mut Command, time: Duration, each: &mut dyn FnMut(&str)) -> Result<Option<i32>, Error> {
    let mut machine = Running(command.spawn().map_err(Error::at("start `qemu-system-x86_64`"))?);
    let lines = lines(&mut machine.0);
    let begin = Instant::now();
    let mut up = false;
    loop {
        let until = if up { time } else { SILENCE };
        match lines.recv_timeout(until.saturating_sub(begin.elapsed())) {
            Ok(line) => match line.strip_prefix(SAYS).and_then(|said| said.split_once(' ')) {
                Some(("exit", status)) => return Ok(Some(status.parse().unwrap_or(-1))),
                _ => {
                    up |= line.starts_with(SAYS);
                    each(&line);
                }
            },
            Err(RecvTimeoutError::Timeout) if !up => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::Failed(format!("the machine was not done after {} s", time.as_secs())));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Failed("the machine ended in the middle of its job".into()));
            }
        }
    }
}

/// What the machine says.
fn lines(machine: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    if let Some(console) = machine.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if send.send(line).is_err() {
                    return;
                }
            }
        });
    }
    receive
}
