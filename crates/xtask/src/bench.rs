//! The benchmark.

use crate::image::{Kind, build, peers};
use crate::packages;
use crate::run::{Error, cargo, run, target};
use std::ffi::OsStr;
use std::process::Command;

/// Builds what is measured and what it is measured with, and runs the benchmark.
pub(crate) fn bench(arguments: &[String]) -> Result<(), Error> {
    packages::install(packages::TEST)?;
    packages::install(packages::BENCH)?;
    if let Err(error) = peers() {
        eprintln!("no later container engines: {error}");
    }
    cargo(&["build", "--release", "--package", "vellum-cli", "--package", "vellum-bench"])?;
    let images = [
        ("--real", build(Kind::Real)?),
        ("--deep", build(Kind::Deep)?),
        ("--wide", build(Kind::Wide)?),
        ("--systems", build(Kind::Systems)?),
    ];
    let release = target().join("release");
    let mut command = Command::new(release.join("vellum-bench"));
    command
        .arg("--vellum")
        .arg(release.join("vellum"))
        .args(images.iter().flat_map(|(name, place)| [OsStr::new(name), place.as_os_str()]));
    command.args(arguments);
    run(&mut command)
}
