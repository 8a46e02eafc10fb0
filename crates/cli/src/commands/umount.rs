use crate::cli::Global;
use crate::context;
use crate::failure::{NOT_FOUND, Result, for_each};
use crate::output::{Out, note};
use clap::Args;
use std::collections::BTreeMap;
use vellum_store::{Code, ContainerRow, Store, Unmounted};
use vellum_types::ContainerId;

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
        let mut out = Out::new();
        let mut give_up = |shown: &str, id: &ContainerId| -> Result<()> {
            let Unmounted { left, .. } = store.umount(id, self.all || self.force, self.force)?;
            if left > 0 {
                note(format_args!("note: {shown} stays mounted for {left} more"));
            }
            out.line(shown)
        };
        let outcome = if self.all {
            let rows = store.containers()?.into_iter().filter(|row| row.mounted.is_some());
            let mounted: BTreeMap<String, ContainerId> = rows.map(|row| (called(&row), row.id)).collect();
            // By id: a name may be another container's by now, and what was removed since is not mounted any more.
            for_each(mounted.keys(), |shown| match give_up(shown, &mounted[shown]) {
                Err(failure) if failure.code() == NOT_FOUND => Ok(()),
                done => done,
            })
        } else {
            for_each(&self.containers, |reference| give_up(reference, &store.find_container(reference)?.id))
        };
        out.finish()?;
        drop(store);
        if self.all && outcome.is_ok() {
            take_pool_off(global)?;
        }
        outcome
    }
}

fn called(row: &ContainerRow) -> String {
    row.name.as_ref().map_or_else(|| row.id.to_string(), ToString::to_string)
}

/// One that is used stays: that all containers are unmounted is what was asked for.
fn take_pool_off(global: &Global) -> Result<()> {
    match Store::pool_unmount(&context::options(global)?) {
        Err(e) if !matches!(e.code(), Code::NotFound | Code::InUse | Code::Unsupported) => Err(e.into()),
        _ => Ok(()),
    }
}
