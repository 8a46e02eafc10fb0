//! Commands of the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a chore could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A command failed; it has said why.
    #[error("`{0}` failed")]
    Failed(String),
    /// Something is not there that the chore needs.
    #[error("{0}")]
    Missing(String),
    /// Tests failed.
    #[error("{0} of the tests failed")]
    Tests(u64),
    /// The chore's own input and output.
    #[error("cannot {operation}: {source}")]
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

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command in the workspace.
pub(crate) fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// Runs cargo to its end.
pub(crate) fn cargo(arguments: &[&str]) -> Result<(), Error> {
    run(&mut cargo_command(arguments))
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let text = command.get_args().fold(name, |text, word| format!("{text} {}", word.to_string_lossy()));
    let status = command.status().map_err(Error::at(format!("start `{text}`")))?;
    if status.success() { Ok(()) } else { Err(Error::Failed(text)) }
}

/// Whether a program is on the PATH or in a folder for the administrator's programs; of a whole path, whether that is a file.
pub(crate) fn has(program: &str) -> bool {
    find(program).is_some()
}

/// Where it is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}
