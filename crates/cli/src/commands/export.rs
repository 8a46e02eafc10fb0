use super::save::Pending;
use crate::cli::Global;
use crate::context;
use crate::failure::{Result, io, usage};
use crate::output::{self, Out};
use clap::Args;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

/// Write a container's whole tree as a tar
///
/// The tree is that of the image with the container's changes, without layers and without configuration.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The tar, which appears when it is complete, or - for standard output, which is also the default
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container, by name or id
    container: String,
}

impl Export {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let output = output::named(self.output.as_deref());
        if output.is_none() && output::is_terminal() {
            return Err(usage("a tar is not for a terminal: name a file with -o, or pipe it on"));
        }
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?.id;
        let Some(path) = output else {
            let mut out = Out::new();
            store.export(&container, &mut out)?;
            return out.finish();
        };
        let written = |file: &File| -> Result<()> {
            let mut out = BufWriter::with_capacity(256 << 10, file);
            store.export(&container, &mut out)?;
            out.flush().map_err(io(format!("write {}", path.display())))
        };
        if path.metadata().is_ok_and(|facts| !facts.is_file()) {
            let file = File::options().write(true).open(path);
            return written(&file.map_err(io(format!("open {}", path.display())))?);
        }
        let pending = Pending::new(path)?;
        written(&pending.file)?;
        pending.publish()
    }
}
