use crate::cli::Global;
use crate::context;
use crate::failure::Result;
use crate::output::say;
use clap::Args;
use vellum_types::ContainerName;

/// Bring a container back to a save point, and print the save point's name
///
/// What the container wrote since is lost; the save point stays. The container must not be mounted.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The container, by name or id
    container: String,
    /// The save point [default: the latest]
    name: Option<ContainerName>,
}

impl Rollback {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?;
        say(store.rollback(&container.id, self.name.as_ref())?.name)
    }
}
