//! Commands, measured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Why a line could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A tool or an image is not there: the line is left out, and the report says so.
    #[error("{0} is missing")]
    Missing(String),
    /// A measured command failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// As typed.
        command: String,
        /// How it ended.
        status: String,
        /// The last it said.
        stderr: String,
    },
    /// The bench's own input and output.
    #[error("{operation}: {source}")]
    Io {
        /// What was attempted.
        operation: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`.
    pub(crate) fn at(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }
}

/// What one run of a command cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// User and system time, of the command and of all it waited for.
    pub cpu: Duration,
    /// Maximum resident set, mapped files included.
    pub peak_kib: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
        self.peak_kib = self.peak_kib.max(other.peak_kib);
    }
}

/// Runs `command` to its end and tells what it cost and what it printed.
pub(crate) fn measure(command: &mut Command) -> Result<(Cost, String), Error> {
    let text = describe(command);
    let mut stderr = tempfile()?;
    let mut stdout = tempfile()?;
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone().map_err(Error::at("copy a descriptor"))?);
    command.stderr(stderr.try_clone().map_err(Error::at("copy a descriptor"))?);
    let start = Instant::now();
    let child = command.spawn().map_err(Error::at(format!("start `{text}`")))?;
    let ended = vellum_sys::child::wait_with_usage(child).map_err(Error::at(format!("wait for `{text}`")))?;
    let cost = Cost { wall: start.elapsed(), cpu: ended.cpu, peak_kib: ended.peak_kib };
    if !ended.status.success() {
        let said = read_back(&mut stderr)?;
        let tail: Vec<&str> = said.lines().rev().take(5).collect();
        return Err(Error::Failed {
            command: text,
            status: ended.status.to_string(),
            stderr: tail.into_iter().rev().collect::<Vec<_>>().join(" | "),
        });
    }
    Ok((cost, read_back(&mut stdout)?))
}

/// Runs a shell script, as [`measure`]; `$1`, `$2` … are the arguments.
pub(crate) fn shell(script: &str, arguments: &[&Path]) -> Result<(Cost, String), Error> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "bench"]).args(arguments);
    measure(&mut command)
}

/// Finds a tool on the PATH.
pub(crate) fn tool(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::Missing(name.to_owned()))
}

fn tempfile() -> Result<std::fs::File, Error> {
    let path = std::env::temp_dir().join(format!("vellum-bench-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(Error::at(format!("create {}", path.display())))?;
    std::fs::remove_file(&path).map_err(Error::at(format!("unlink {}", path.display())))?;
    Ok(file)
}

fn read_back(file: &mut std::fs::File) -> Result<String, Error> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(Error::at("read a command's output"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy().chars().take(200).collect::<String>());
    }
    text
}
