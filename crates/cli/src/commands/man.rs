use crate::cli::Cli;
use crate::failure::{Result, io};
use clap::{Args, CommandFactory as _};
use std::path::PathBuf;

/// Write all manual pages into a folder
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Man {
    /// The folder, which must exist
    dir: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<()> {
        clap_mangen::generate_to(Cli::command(), &self.dir)
            .map_err(io(format!("write manual pages into {}", self.dir.display())))
    }
}
