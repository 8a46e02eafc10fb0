//! Children that die at a named point.
//!
//! Crates name their durable steps with [`vellum_sys::fault::point`]. A test that wants to see what a crash there
//! leaves runs a program with the point armed, and looks at the disk afterwards. The program may be the test itself:
//!
//! ```no_run
//! use vellum_testkit::fault::{self, Death};
//!
//! # fn work() {}
//! # fn look() {}
//! fn plain_crash_between_the_steps() {
//!     if fault::is_child() {
//!         return work();
//!     }
//!     let death = fault::rerun("plain_crash_between_the_steps", "store.load.ready").unwrap();
//!     assert_eq!(death, Death::AtThePoint);
//!     look();
//! }
//! ```

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

/// Set in the environment of a test's child.
const CHILD: &str = "VELLUM_TEST_CHILD";

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// Killed, as an armed point does it.
    AtThePoint,
    /// It went through to its end: the point was never passed.
    Never,
    /// In another way, with what it said.
    Otherwise(String),
}

/// Whether this process is the child that shall do the work.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs the test of this name once more, in a child, with the point armed: `name`, `name:3` for the third time it
/// is passed, `name=ENOSPC` to make it fail instead.
///
/// # Errors
/// The child cannot be started.
pub fn rerun(test: &str, point: &str) -> io::Result<Death> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    run(&mut command, point)
}

/// Runs a command with the point armed.
///
/// # Errors
/// The command cannot be started.
pub fn run(command: &mut Command, point: &str) -> io::Result<Death> {
    let output = command.env(vellum_sys::fault::VARIABLE, point).stdin(Stdio::null()).output()?;
    Ok(death(output.status, &output.stderr))
}

fn death(status: ExitStatus, said: &[u8]) -> Death {
    const SIGKILL: i32 = 9;
    match (status.signal(), status.success()) {
        (Some(SIGKILL), _) => Death::AtThePoint,
        (None, true) => Death::Never,
        _ => Death::Otherwise(format!("{status}: {}", String::from_utf8_lossy(said).trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_deaths_are_told_apart() {
        let sh = |script: &str| run(Command::new("sh").args(["-c", script]), "no.such.point").unwrap();
        assert_eq!(sh("kill -9 $$"), Death::AtThePoint);
        assert_eq!(sh("test \"$VELLUM_FAULT\" = no.such.point"), Death::Never);
        assert_eq!(sh("echo why >&2; exit 3"), Death::Otherwise("exit status: 3: why".into()));
    }
}
