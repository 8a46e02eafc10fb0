use crate::cli::Global;
use crate::context;
use crate::failure::{Result, for_each};
use crate::output::Out;
use clap::Args;

/// Remove containers and their save points
///
/// Takes milliseconds, whatever a container has written; the space comes back shortly after.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Also containers that are mounted: who is in one keeps what is open
    #[arg(short, long)]
    force: bool,
    /// The containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let mut out = Out::new();
        let outcome = for_each(&self.containers, |reference| {
            let container = store.find_container(reference)?;
            store.remove_container(&container.id, self.force)?;
            out.line(reference)
        });
        out.finish()?;
        outcome
    }
}
