use crate::cli::Global;
use crate::context;
use crate::failure::Result;
use crate::output::say;
use clap::Args;
use vellum_types::ContainerName;

/// Keep a container's state as a save point, and print the save point's name
///
/// What the container has written is kept by sharing its blocks where the file system can (btrfs, XFS), else by a copy. A
/// mounted container's file system is brought to rest meanwhile (frozen, or synced where it cannot be frozen), so that
/// the save point holds one moment.
#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    /// The container, by name or id
    container: String,
    /// The save point's name [default: a number]
    name: Option<ContainerName>,
}

impl Snapshot {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?;
        say(store.snapshot(&container.id, self.name.as_ref())?.name)
    }
}
