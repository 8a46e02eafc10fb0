use crate::cli::{Global, given_name};
use crate::context;
use crate::failure::{Failure, Result, during, io};
use crate::output::say;
use crate::progress::Bars;
use clap::Args;
use std::fs::File;
use std::path::PathBuf;
use vellum_store::ImportSource;
use vellum_types::ImageName;

/// Make an image of one layer from a tar or a folder, and print its id
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A tar (plain, or compressed by gzip or zstd), a folder, or - for a tar on standard input
    #[arg(value_name = "TAR|DIR|-")]
    source: PathBuf,
    /// The image's name
    #[arg(value_parser = given_name)]
    name: Option<ImageName>,
}

impl Import {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open_or_make(global)?;
        let opened = || File::open(&self.source).map_err(io(format!("open {}", self.source.display())));
        let source = if self.source.as_os_str() == "-" {
            ImportSource::Tar(Box::new(std::io::stdin()))
        } else if self.source.is_dir() {
            // A link to a folder was meant as the folder.
            let folder = std::fs::canonicalize(&self.source);
            ImportSource::Folder(folder.map_err(io(format!("open {}", self.source.display())))?)
        } else {
            ImportSource::Tar(Box::new(opened()?))
        };
        let bars = Bars::new(false, Some(1));
        let report = store.import(source, self.name.as_ref(), &bars);
        bars.clear();
        let report =
            report.map_err(Failure::from).map_err(during(format!("import {}", self.source.display())))?;
        say(report.id)?;
        super::load::tell_left_out(&report);
        Ok(())
    }
}
