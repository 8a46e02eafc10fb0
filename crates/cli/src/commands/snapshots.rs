use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use vellum_types::{ContainerId, ContainerName, LayerId};

/// List a container's save points, the oldest first
#[derive(Debug, Args)]
pub(crate) struct Snapshots {
    /// Remove this save point first
    #[arg(long, value_name = "NAME")]
    remove: Vec<ContainerName>,
    /// The container, by name or id
    container: String,
    #[command(flatten)]
    format: Format,
}

/// A save point, as `--json` shows it.
#[derive(Debug, Serialize)]
struct View {
    name: ContainerName,
    container: ContainerId,
    layer: LayerId,
    created: Timestamp,
    bytes: u64,
    inodes: u64,
}

impl Snapshots {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?;
        for name in &self.remove {
            store.remove_save_point(&container.id, name)?;
        }
        let rows = store.save_points(&container.id)?;
        let mut out = Out::new();
        if self.format.json {
            let view = |row: vellum_store::SavePointRow| View {
                name: row.name,
                container: row.container,
                layer: row.layer,
                created: row.created,
                bytes: row.size.bytes,
                inodes: row.size.inodes,
            };
            out.json(&rows.into_iter().map(view).collect::<Vec<_>>())?;
        } else {
            let line = |row: &vellum_store::SavePointRow| {
                vec![row.name.to_string(), human::ago(row.created), human::size(row.size.bytes)]
            };
            out.table(&["NAME", "CREATED", "SIZE"], rows.iter().map(line).collect())?;
        }
        out.finish()
    }
}
