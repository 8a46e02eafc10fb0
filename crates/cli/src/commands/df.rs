use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use clap::Args;
use vellum_store::DfLine;

/// Show what the store takes on disk
///
/// ACTIVE are images with containers, and containers that are mounted. RECLAIMABLE is what `gc`, and removing what is not
/// active, would give back.
#[derive(Debug, Args)]
pub(crate) struct Df {
    #[command(flatten)]
    format: Format,
}

impl Df {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let df = context::open_or_make(global)?.usage()?;
        let mut out = Out::new();
        if self.format.json {
            out.json(&df)?;
            return out.finish();
        }
        let line = |name: &str, line: &DfLine| {
            let share = line.reclaimable.saturating_mul(100).checked_div(line.bytes).unwrap_or(0);
            vec![
                name.to_owned(),
                line.count.to_string(),
                line.active.to_string(),
                human::size(line.bytes),
                format!("{} ({share}%)", human::size(line.reclaimable)),
            ]
        };
        let rows = vec![
            line("Images", &df.images),
            line("Containers", &df.containers),
            line("Save points", &df.save_points),
            line("Kept blobs", &df.blobs),
            line("Other front ends", &df.snapshots),
            line("Unused layers", &df.unused),
            line("Trash", &df.trash),
            line("Metadata", &df.metadata),
        ];
        out.table(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], rows)?;
        out.finish()
    }
}
