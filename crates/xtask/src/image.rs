//! Test images, built once and kept in the user's cache folder.

use crate::packages;
use crate::run::{Error, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use vellum_testkit::image;

/// A test image; `images/real.sh` says what is in it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Kind {
    /// 14 layers with compilers and large files: for the benchmark.
    Real,
    /// 13 layers, small: for the tests.
    Small,
    /// 120 layers of one small file each.
    Deep,
    /// One layer of 100,000 small files.
    Wide,
}

/// Builds the image if it is not there, and says where it is. It appears whole or not at all; of two builds at once the second waits.
pub(crate) fn build(kind: Kind) -> Result<PathBuf, Error> {
    let name = match kind {
        Kind::Real => "real",
        Kind::Small => "small",
        Kind::Deep => "deep",
        Kind::Wide => "wide",
    };
    let place = image::place(name);
    let folder = image::cache();
    std::fs::create_dir_all(&folder).map_err(Error::at(format!("make {}", folder.display())))?;
    let lock = std::fs::File::create(folder.join(format!("{name}.lock"))).and_then(|lock| {
        lock.lock()?;
        Ok(lock)
    });
    let _lock = lock.map_err(Error::at(format!("lock {}", folder.display())))?;
    if place.join("index.json").exists() {
        return Ok(place);
    }
    match kind {
        Kind::Real | Kind::Small => debian(name, &place)?,
        Kind::Deep => generated(&place, image::deep)?,
        Kind::Wide => generated(&place, image::wide)?,
    }
    Ok(place)
}

fn debian(name: &str, place: &Path) -> Result<(), Error> {
    if !packages::is_root() {
        return Err(Error::Missing("building the test image needs root, for debootstrap".into()));
    }
    packages::install(packages::TEST)?;
    run(Command::new("bash").arg(root().join("crates/xtask/images/real.sh")).arg(name).arg(place))
}

fn generated(place: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), Error> {
    let partial = place.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(Error::at("remove a half-made image"))?;
    }
    make(&partial)
        .and_then(|()| std::fs::rename(&partial, place))
        .map_err(Error::at(format!("make {}", place.display())))
}
