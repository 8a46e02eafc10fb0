use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::output::Out;
use clap::Args;
use serde::Serialize;
use vellum_driver::Change;

/// Show what a container has changed
///
/// One line for each path: A added, C changed (or the folder of something that changed), D deleted.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The container, by name or id
    container: String,
    #[command(flatten)]
    format: Format,
}

/// A change, as `--json` shows it. Bytes of the path that are not UTF-8, and control characters, are escaped.
#[derive(Debug, Serialize)]
struct View {
    change: Change,
    path: String,
}

impl Diff {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?;
        let mut out = Out::new();
        let mut views = Vec::new();
        store.diff(&container.id, &mut |change, path| {
            if self.format.json {
                views.push(View { change, path: path.to_string() });
                return Ok(());
            }
            let letter = match change {
                Change::Added => 'A',
                Change::Modified => 'C',
                Change::Deleted => 'D',
            };
            use std::io::Write as _;
            writeln!(out, "{letter} {path}")
        })?;
        if self.format.json {
            out.json(&views)?;
        }
        out.finish()
    }
}
