use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use crate::views;
use clap::Args;
use vellum_types::ContainerName;

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
            out.json(&rows.into_iter().map(views::SavePoint::from).collect::<Vec<_>>())?;
        } else {
            let line = |row: &vellum_store::SavePointRow| {
                vec![row.name.to_string(), human::ago(row.created), human::size(row.size.bytes)]
            };
            out.table(&["NAME", "CREATED", "SIZE"], rows.iter().map(line).collect())?;
        }
        out.finish()
    }
}
