use crate::cli::Global;
use crate::context;
use crate::failure::{Result, io, usage};
use crate::output::note;
use clap::{Args, Subcommand};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use vellum_store::{OpenOptions, Store};

/// Look after the store as a whole
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    Reset(Reset),
}

impl System {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        match self {
            Self::Reset(command) => command.run(global),
        }
    }
}

/// Remove the store whole: all images, containers and save points
///
/// Everything of it is unmounted and deleted, damaged stores too. What else somebody keeps in its folder stays. A folder that is no store
/// is refused.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Reset {
    fn run(&self, global: &Global) -> Result<()> {
        let options = OpenOptions { create: false, worker: None, ..context::options(global)? };
        context::enter(&options.root, false)?;
        let namespace = context::Namespace::of(&options.root, false)?;
        if !self.force && !confirmed(&options)? {
            note("Nothing was done.");
            return Ok(());
        }
        Store::reset(&options)?;
        namespace.end()
    }
}

fn confirmed(options: &OpenOptions) -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(usage("there is nobody to ask: say --force to remove the store"));
    }
    let mut err = std::io::stderr().lock();
    let failed = || io("ask on the terminal");
    write!(err, "Remove the store at {} with everything in it? [y/N] ", options.root.display())
        .and_then(|()| err.flush())
        .map_err(failed())?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(failed())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
