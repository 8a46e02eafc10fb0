use crate::cli::Global;
use crate::failure::Result;
use clap::Args;
use std::path::PathBuf;

/// Show what Vellum does, with an image made of this machine's own files
///
/// Makes an image of a shell, its tools and the libraries they need, loads it into a store of its own, mounts a
/// container, runs a command in it, shows what changed, commits it, makes a hundred more containers, and tells what
/// that took beside plain copies of the tree. Cleans up everything. Takes seconds, as root and as an ordinary user.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where the temporary store lies [default: $TMPDIR, or /var/tmp]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Demo {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        crate::demo::run(global, self.dir.as_deref())
    }
}
