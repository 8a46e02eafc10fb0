use crate::cli::Cli;
use crate::failure::{Result, io};
use crate::output::Out;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use std::io::Write as _;

/// Print the completions for a shell
///
/// For bash: `vellum completions bash > ~/.local/share/bash-completion/completions/vellum`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<()> {
        // The generator itself panics when it cannot write.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vellum", &mut text);
        let mut out = Out::new();
        out.write_all(&text).map_err(io("write to standard output"))?;
        out.finish()
    }
}
