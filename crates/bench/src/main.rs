//! Measures Vellum beside the tools people use today.
//!
//! Every figure is the median of several runs that alternate between the tools, on one file system, and what counts
//! is the ratio: machines are shared and noisy. Nothing here asserts a time; the table says which goals are met.
//!
//! A trap that this avoids: ext4 does not reuse an inode deleted a moment ago and scans past it, so that creating files right after
//! a mass deletion is several times slower. Each line therefore works on a file system that was made for it, in a file, and its
//! outputs are kept until all its runs are over.
// A command of its own: what it prints is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod docker;
mod images;
mod lines;
mod peers;
mod report;
mod run;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures Vellum beside tar, pigz, umoci, podman and containerd.
#[derive(Debug, Parser)]
struct Arguments {
    /// The vellum command to measure.
    #[arg(long, default_value = "target/release/vellum")]
    vellum: PathBuf,
    /// The folder for images and for the file that holds the stores' file system.
    #[arg(long, default_value = "/var/tmp/vellum-bench")]
    work: PathBuf,
    /// The real Debian image, an OCI layout (`cargo xtask image real` builds it and prints its place).
    #[arg(long)]
    real: Option<PathBuf>,
    /// 120 layers of one file, an OCI layout (`cargo xtask image deep`).
    #[arg(long)]
    deep: Option<PathBuf>,
    /// One layer of 100,000 files, an OCI layout (`cargo xtask image wide`).
    #[arg(long)]
    wide: Option<PathBuf>,
    /// A folder of root file systems that were built separately (`cargo xtask image systems`).
    #[arg(long)]
    systems: Option<PathBuf>,
    /// The file system that is measured, made anew for each line; `here` is that of the work folder.
    #[arg(long, default_value = "ext4", value_parser = ["ext4", "xfs", "btrfs", "here"])]
    fs: String,
    /// Runs of each line.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only lines whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<(), run::Error> {
    let bench = lines::Bench::new(arguments)?;
    let mut report = report::Report::new(&bench);
    for line in lines::ALL {
        if arguments.only.as_deref().is_some_and(|only| !line.name.contains(only)) {
            continue;
        }
        eprintln!("{} …", line.name);
        bench.begin()?;
        match (line.measure)(&bench) {
            Ok(figures) => report.add(line.name, figures),
            Err(run::Error::Missing(what)) => report.skip(line.name, &what),
            Err(error) => {
                bench.clean()?;
                return Err(error);
            }
        }
        bench.clean()?;
    }
    println!("{report}");
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    Ok(())
}
