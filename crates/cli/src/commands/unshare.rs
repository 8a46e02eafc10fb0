use crate::cli::Global;
use crate::context;
use crate::failure::{Failure, Result, io};
use clap::Args;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;

/// Run a command in the store's namespace
///
/// An ordinary user's mounts are seen only there, and files there have the owners that containers see. As root
/// the command runs as it is. Ends with the command's exit code, or, as shells do, with 127 when there is no such command and 126 when
/// it cannot be run.
#[derive(Debug, Args)]
pub(crate) struct Unshare {
    /// The command and its arguments [default: $SHELL]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Unshare {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        context::enter(&context::root(global)?, true)?;
        let shell = || std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        let command = if self.command.is_empty() { vec![shell()] } else { self.command.clone() };
        let mut words = command.iter();
        let program = words.next().cloned().unwrap_or_else(shell);
        let error = std::process::Command::new(&program).args(words).exec();
        let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
        io(format!("run {}", program.display()))(error).tell();
        Err(Failure::Told(code))
    }
}
