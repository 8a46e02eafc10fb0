use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use clap::Args;

/// Take away what nothing needs
///
/// Layers without image and container, remains of commands that were killed, kept blobs without layer, and what was made
/// for mounts of layers that only others lie on (it is made again if one is mounted). What images, containers, save
/// points and other front ends need is never touched.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Only say what would be taken away, and why
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

impl Gc {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let report = context::open(global)?.gc(self.dry_run)?;
        let mut out = Out::new();
        if self.format.json {
            out.json(&report)?;
            return out.finish();
        }
        let line = |item: &vellum_store::GcItem| {
            vec![item.kind.to_owned(), item.object.clone(), human::size(item.bytes), item.reason.clone()]
        };
        if !report.items.is_empty() {
            out.table(&["KIND", "OBJECT", "SIZE", "WHY"], report.items.iter().map(line).collect())?;
        }
        let verb = if self.dry_run { "Would give back" } else { "Gave back" };
        out.line(format_args!("{verb}: {}", human::size(report.bytes)))?;
        if let Some(trimmed) = report.trimmed {
            out.line(format_args!("Of the pool's file: {}", human::size(trimmed)))?;
        }
        out.finish()
    }
}
