use crate::cli::Global;
use crate::context;
use crate::failure::{Result, for_each};
use crate::output::{Out, note};
use clap::Args;
use vellum_store::{Code, Store, Unmounted};

/// Give up mounts of containers
///
/// Each `umount` takes back one `mount`; the file system goes with the last. A container that is not mounted is no error.
///
/// With --all a pool of the store is taken off, too, unless another process has the store open.
#[derive(Debug, Args)]
pub(crate) struct Umount {
    /// All containers, whatever their count
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
    /// Whatever the count, and also when somebody is still in it: they keep what they have open
    #[arg(short, long)]
    force: bool,
    /// The containers, by name or id
    #[arg(required_unless_present = "all", value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Umount {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let containers = if self.all {
            let mounted = store.containers()?.into_iter().filter(|row| row.mounted.is_some());
            mounted.map(|row| row.name.map_or_else(|| row.id.to_string(), |name| name.to_string())).collect()
        } else {
            self.containers.clone()
        };
        let mut out = Out::new();
        let outcome = for_each(&containers, |reference| {
            let container = store.find_container(reference)?;
            let Unmounted { left, .. } = store.umount(&container.id, self.all || self.force, self.force)?;
            if left > 0 {
                note(format_args!("note: {reference} stays mounted for {left} more"));
            }
            out.line(reference)
        });
        out.finish()?;
        drop(store);
        if self.all && outcome.is_ok() {
            take_pool_off(global)?;
        }
        outcome
    }
}

/// One that is used stays: that all containers are unmounted is what was asked for.
fn take_pool_off(global: &Global) -> Result<()> {
    match Store::pool_unmount(&context::options(global)?) {
        Err(e) if !matches!(e.code(), Code::NotFound | Code::InUse | Code::Unsupported) => Err(e.into()),
        _ => Ok(()),
    }
}
