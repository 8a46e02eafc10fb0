//! The process that keeps the namespaces.

use super::NsError;
use crate::detach;
use crate::lock::FileLock;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

pub(super) const RECORD: &str = "ns";
pub(super) const LOCK: &str = "ns.lock";

/// What a command and the holder it starts say to each other: one byte, after the first the holder's pid.
const MADE: u8 = b'u';
const MAPPED: u8 = b'm';
const READY: u8 = b'r';
const FAILED: u8 = b'e';

/// A holder that lives.
#[derive(Debug)]
pub(super) struct Holder {
    pid: u32,
    pub(super) user: File,
    pub(super) mount: File,
}

/// The pid of the holder of the namespaces of `dir`; `None` if there is none.
///
/// # Errors
/// The record cannot be read.
pub fn holder(dir: &Path) -> Result<Option<u32>, NsError> {
    Ok(find(dir)?.map(|holder| holder.pid))
}

/// The holder, if it lives.
pub(super) fn find(dir: &Path) -> Result<Option<Holder>, NsError> {
    let path = dir.join(RECORD);
    let fail = |error| NsError::system(format!("look for the holder in {}", path.display()), error);
    // A holder may end between two questions; then the next finds none.
    for _ in 0..10 {
        if !crate::lock::is_held(&path).map_err(fail)? {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(fail)?;
        let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [pid, user, mount] = numbers[..] else { return Err(NsError::Record { path }) };
        if let (Ok(user), Ok(mount), Ok(pid)) =
            (open_namespace(pid, "user", user), open_namespace(pid, "mnt", mount), u32::try_from(pid))
        {
            return Ok(Some(Holder { pid, user, mount }));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(NsError::Record { path })
}

/// Opens a namespace of a process if it is the one with this inode.
fn open_namespace(pid: u64, kind: &str, inode: u64) -> io::Result<File> {
    let file = File::open(format!("/proc/{pid}/ns/{kind}"))?;
    if file.metadata()?.ino() == inode { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Starts a holder and waits until it holds. The caller has the lock.
pub(super) fn create<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<(), NsError> {
    let mut command = detach::this_executable(arguments);
    // It lives long, and what lies in an environment may be a secret.
    command.env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
    // Nobody's child: what the command becomes may wait for all of its children.
    // SAFETY: between fork and exec the closure only makes system calls, which is all that is allowed there.
    unsafe {
        command.pre_exec(|| {
            detach::become_orphan()?;
            rustix::process::setsid()?;
            detach::close_on_exec_all();
            Ok(())
        })
    };
    let mut child = command.spawn().map_err(|error| NsError::system("start the holder", error))?;
    // If this fails, the pipes are closed and the holder sees it.
    let result = talk(&mut child);
    let _ = child.wait();
    result
}

fn talk(child: &mut Child) -> Result<(), NsError> {
    expect(child, MADE)?;
    let mut pid = [0u8; 4];
    let read = child.stdout.as_mut().map_or(Ok(()), |pipe| pipe.read_exact(&mut pid));
    read.map_err(|error| NsError::system("hear the holder", error))?;
    super::maps::write_maps(u32::from_ne_bytes(pid))?;
    let told = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(&[MAPPED]));
    told.map_err(|error| NsError::system("talk to the holder", error))?;
    expect(child, READY)
}

/// Reads one byte of the holder; if it is another, the rest says why.
fn expect(child: &mut Child, byte: u8) -> Result<(), NsError> {
    let mut got = [0u8];
    let pipe = child.stdout.as_mut();
    let read = pipe
        .map_or(Ok(0), |pipe| pipe.read(&mut got))
        .map_err(|error| NsError::system("hear the holder", error))?;
    if read == 1 && got[0] == byte {
        return Ok(());
    }
    let mut reason = String::new();
    if got[0] == FAILED
        && let Some(pipe) = child.stdout.as_mut()
    {
        let _ = pipe.read_to_string(&mut reason);
    }
    if reason.is_empty() {
        reason = "the holder ended without a word".into();
    }
    Err(NsError::Unavailable { reason })
}

/// What the executable does when it is started with the hidden arguments that were given to [`super::enter_or_create`]: makes the namespaces
/// and holds them until it is told to end, or the store, whose folder is `root`, is gone. Called first thing in main, in a process with
/// one thread. If it fails, the command that waits for it has been told.
///
/// # Errors
/// The namespaces cannot be made.
pub fn hold(dir: &Path, root: &Path) -> Result<(), NsError> {
    let held = prepare(dir);
    let mut out = io::stdout();
    let record = match held {
        Ok(record) => record,
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let _ = out.write_all(&[FAILED]);
            let _ = write!(out, "{error}{cause}");
            let _ = out.flush();
            return Err(error);
        }
    };
    let _ = out.write_all(&[READY]);
    let _ = out.flush();
    close_standard();
    super::watch::until_gone(dir, root);
    // The record's lock is what says that this process lives.
    drop(record);
    Ok(())
}

fn prepare(dir: &Path) -> Result<FileLock, NsError> {
    let path = dir.join(RECORD);
    // Opened while the path still means what it means to the command.
    let record = FileLock::try_exclusive(&path)
        .map_err(|error| NsError::system(format!("lock {}", path.display()), error))?
        .ok_or_else(|| NsError::Unavailable { reason: "another holder is there".into() })?;
    super::join::single_threaded()?;
    let flags = rustix::thread::UnshareFlags::NEWUSER | rustix::thread::UnshareFlags::NEWNS;
    // SAFETY: the flags leave the table of descriptors shared as it was.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|error| NsError::Unavailable {
        reason: format!(
            "unshare: {} (see user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns)",
            io::Error::from(error)
        ),
    })?;
    let talk = |error| NsError::system("talk to the command", error);
    let mut made = vec![MADE];
    made.extend(std::process::id().to_ne_bytes());
    io::stdout().write_all(&made).and_then(|()| io::stdout().flush()).map_err(talk)?;
    let mut answer = [0u8];
    io::stdin().read_exact(&mut answer).map_err(talk)?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
        .map_err(|error| NsError::system("make the mounts of the namespace slaves", error))?;
    write_record(&record).map_err(|error| NsError::system(format!("write {}", path.display()), error))?;
    Ok(record)
}

fn write_record(record: &FileLock) -> io::Result<()> {
    let inode = |kind| Ok::<_, io::Error>(std::fs::metadata(format!("/proc/self/ns/{kind}"))?.ino());
    let line = format!("{} {} {}\n", std::process::id(), inode("user")?, inode("mnt")?);
    record.file().set_len(0)?;
    record.file().write_all_at(line.as_bytes(), 0)
}

/// Puts /dev/null in the place of the pipes to the command, so that it sees their end.
fn close_standard() {
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Ends the holder of `dir` and waits until it is gone; false if there was none. What is mounted in the namespaces goes with the last process in
/// them, which may be the caller.
///
/// # Errors
/// It cannot be found, or not be told.
pub fn end(dir: &Path) -> Result<bool, NsError> {
    match end_found(dir) {
        // It ended by itself, because the store is gone, and took the folder with it.
        Err(NsError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound && !dir.exists() => {
            Ok(false)
        }
        ended => ended,
    }
}

fn end_found(dir: &Path) -> Result<bool, NsError> {
    let path = dir.join(LOCK);
    let _lock = FileLock::exclusive(&path)
        .map_err(|error| NsError::system(format!("lock {}", path.display()), error))?;
    let Some(holder) = find(dir)? else { return Ok(false) };
    let fail = |error: rustix::io::Errno| NsError::system(format!("end the holder {}", holder.pid), error);
    let pid = i32::try_from(holder.pid).ok().and_then(Pid::from_raw).ok_or(fail(rustix::io::Errno::SRCH))?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(fail)?;
    // The pid was the holder's when its namespaces were opened; if it still is, the descriptor is the holder's.
    if find(dir)?.is_none_or(|again| again.pid != holder.pid) {
        return Ok(false);
    }
    rustix::process::pidfd_send_signal(pidfd.as_fd(), Signal::TERM).map_err(fail)?;
    let path = dir.join(RECORD);
    let gone = FileLock::exclusive(&path)
        .map_err(|error| NsError::system(format!("lock {}", path.display()), error))?;
    gone.file().set_len(0).map_err(|error| NsError::system(format!("empty {}", path.display()), error))?;
    Ok(true)
}
