//! Workers that go on after the command has ended.
//!
//! A worker is this same executable, started again with arguments that make it do one thing. It is in a session of its own, has no
//! descriptor of its parent (so that `$(vellum rm x)` sees the end of the output), and works when nobody else wants the
//! processor or the disk.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_IDLE: libc::c_int = 3 << 13;

/// Starts this executable with `arguments` as a worker, and does not wait for it. It is nobody's child: whoever adopts orphans
/// reaps it.
///
/// # Errors
/// It could not be started.
pub fn spawn<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> io::Result<()> {
    let mut command = this_executable(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // SAFETY: between fork and exec the closure only makes system calls, which is all that is allowed there: the memory of the
    // parent's other threads may be in any state.
    unsafe { command.pre_exec(|| become_orphan().and_then(|()| step_back())) };
    command.spawn()?.wait()?;
    Ok(())
}

/// This executable, with the name it was started by.
pub(crate) fn this_executable<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command.args(arguments);
    command
}

/// Leaves a child behind that goes on, while the process between it and its parent ends at once: the parent waits for that one
/// only, and keeps no zombie.
pub(crate) fn become_orphan() -> io::Result<()> {
    // SAFETY: this process is the single-threaded child of a fork already; both sides go on with system calls only.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: _exit runs no destructors and no handlers: it ends this copy without touching what is shared with the parent.
        _ => unsafe { libc::_exit(0) },
    }
}

fn step_back() -> io::Result<()> {
    rustix::process::setsid()?;
    close_on_exec_all();
    // What follows makes the worker polite; without it, it is still right.
    let _ = rustix::process::setpriority_process(None, 19);
    // SAFETY: ioprio_set takes three numbers; 0 is the calling process.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0 as libc::c_int, IOPRIO_IDLE) };
    Ok(())
}

/// Has every descriptor beyond the three standard ones closed at exec, also those that others left open for it.
pub(crate) fn close_on_exec_all() {
    // SAFETY: with this flag no descriptor is closed now; those that std uses to talk to the parent are marked so already.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        )
    };
    if result != 0 {
        // Before Linux 5.11. Numbers beyond the first thousand are not worth the calls.
        for fd in 3..1024 {
            // SAFETY: a number that is not open is an error without effect; one that is only gets its flag set.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}
