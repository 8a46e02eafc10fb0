use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::output::Out;
use clap::{Args, Subcommand};
use vellum_driver::Support;
use vellum_store::{DriverRow, OpenOptions, Store};

/// Look at storage drivers
#[derive(Debug, Subcommand)]
pub(crate) enum Driver {
    Ls(Ls),
}

impl Driver {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        match self {
            Self::Ls(command) => command.run(global),
        }
    }
}

/// List the storage drivers: which work here, and why others do not
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Also list what each can do
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    format: Format,
}

impl Ls {
    fn run(&self, global: &Global) -> Result<()> {
        let options = OpenOptions { create: false, ..context::options(global)? };
        context::enter(&options.root, true)?;
        // What a store has chosen is told where there is one; probing needs none.
        let rows = match Store::open(&options) {
            Ok(store) => store.drivers(),
            Err(_) => Store::probe_drivers(&options)?,
        };
        let mut out = Out::new();
        if self.format.json {
            out.json(&rows)?;
            return out.finish();
        }
        let line = |row: &DriverRow| {
            let name = if row.selected { format!("{} *", row.name) } else { row.name.to_owned() };
            vec![name, if row.probe.usable { "yes" } else { "no" }.to_owned(), row.probe.reason.clone()]
        };
        out.table(&["DRIVER", "USABLE", "WHY"], rows.iter().map(line).collect())?;
        for row in &rows {
            if let Some(hint) = &row.probe.hint {
                out.line(format_args!("hint: {}: {hint}", row.name))?;
            }
        }
        if self.verbose {
            for row in &rows {
                describe(row, &mut out)?;
            }
        }
        out.finish()
    }
}

fn describe(row: &DriverRow, out: &mut Out) -> Result<()> {
    out.line("")?;
    out.line(format_args!("{}: {}", row.name, row.summary))?;
    if !row.aliases.is_empty() {
        out.line(format_args!("  also called {}", row.aliases.join(", ")))?;
    }
    for (name, value) in &row.probe.facts {
        out.line(format_args!("  {name}: {value}"))?;
    }
    for capability in row.capabilities.iter().flat_map(|all| all.iter()) {
        let support = match capability.support {
            Support::Limit(limit) => limit.to_string(),
            other => other.to_string(),
        };
        out.line(format_args!("  {:?}: {support} ({})", capability.ability, capability.reason))?;
    }
    Ok(())
}
