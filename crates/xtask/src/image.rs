//! Test images.

use crate::packages;
use crate::run::{Error, root, run};
use std::path::PathBuf;
use std::process::Command;

/// A test image; `images/real.sh` says what is in it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Kind {
    /// 14 layers with compilers and large files: for the benchmark.
    Real,
    /// 13 layers, small: for the tests.
    Small,
}

/// The number of the script's contents: a new one builds anew.
const VERSION: u32 = 1;

/// Builds the image if it is not there, and says where it is.
pub(crate) fn build(kind: Kind) -> Result<PathBuf, Error> {
    let name = match kind {
        Kind::Real => "real",
        Kind::Small => "small",
    };
    let place = cache()?.join(format!("{name}-v{VERSION}"));
    if place.join("index.json").exists() {
        return Ok(place);
    }
    if !packages::is_root() {
        return Err(Error::Missing("building the test image needs root, for debootstrap".into()));
    }
    packages::install(packages::TEST)?;
    run(Command::new("bash").arg(root().join("crates/xtask/images/real.sh")).arg(name).arg(&place))?;
    Ok(place)
}

/// The user's cache folder for test images.
fn cache() -> Result<PathBuf, Error> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .ok_or_else(|| Error::Missing("neither XDG_CACHE_HOME nor HOME is set".into()))?;
    Ok(base.join("vellum-test"))
}
