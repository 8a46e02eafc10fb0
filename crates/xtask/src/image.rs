//! Test images, built once and kept in the user's cache folder.

use crate::packages;
use crate::run::{Error, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use vellum_testkit::{engine, image};

/// A test image; the scripts in `images` say what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// 14 layers with compilers and large files: for the benchmark.
    Real,
    /// 13 layers, small: for the tests.
    Small,
    /// 120 layers of one small file each.
    Deep,
    /// One layer of 100,000 small files.
    Wide,
    /// Three root file systems of one Debian, each built by itself: folders.
    Systems,
}

/// Builds the image if it is not there, and says where it is. It appears whole or not at all; of two builds at once the second waits.
pub(crate) fn build(kind: Kind) -> Result<PathBuf, Error> {
    let name = match kind {
        Kind::Real => "real",
        Kind::Small => "small",
        Kind::Deep => "deep",
        Kind::Wide => "wide",
        Kind::Systems => "systems",
    };
    let place = image::place(name);
    let _lock = lock(name)?;
    let whole = if kind == Kind::Systems { place.is_dir() } else { place.join("index.json").exists() };
    if whole {
        return Ok(place);
    }
    match kind {
        Kind::Real | Kind::Small => debian(&root().join("crates/xtask/images/real.sh"), &[name], &place)?,
        Kind::Systems => debian(&root().join("crates/xtask/images/systems.sh"), &[], &place)?,
        Kind::Deep => generated(&place, image::deep)?,
        Kind::Wide => generated(&place, image::wide)?,
    }
    Ok(place)
}

/// Builds the later Debians whose container engines are tested, if they are not there, and says where they are.
pub(crate) fn peers() -> Result<Vec<PathBuf>, Error> {
    let build = |suite| {
        let place = engine::system_place(suite);
        let _lock = lock(suite)?;
        if !place.is_dir() {
            debian(&root().join("crates/xtask/images/peer.sh"), &[suite], &place)?;
        }
        Ok(place)
    };
    engine::SYSTEMS.into_iter().map(build).collect()
}

/// Fetches the kernel of a suite of Debian's for throwaway machines, if it is not there, and says where it is: `vmlinuz`, and `modules`.
pub(crate) fn kernel(suite: &str) -> Result<PathBuf, Error> {
    let name = format!("kernel-{suite}");
    let place = image::place(&name);
    let _lock = lock(&name)?;
    if !place.is_dir() {
        run(Command::new("bash").arg(root().join("crates/xtask/images/kernel.sh")).arg(suite).arg(&place))?;
    }
    Ok(place)
}

/// Held while something of this name is built.
fn lock(name: &str) -> Result<std::fs::File, Error> {
    let folder = image::cache();
    std::fs::create_dir_all(&folder).map_err(Error::at(format!("make {}", folder.display())))?;
    let lock = std::fs::File::create(folder.join(format!("{name}.lock"))).and_then(|lock| {
        lock.lock()?;
        Ok(lock)
    });
    lock.map_err(Error::at(format!("lock {}", folder.display())))
}

fn debian(script: &Path, what: &[&str], place: &Path) -> Result<(), Error> {
    if !packages::is_root() {
        return Err(Error::Missing("building what tests need of Debian needs root, for debootstrap".into()));
    }
    packages::install(packages::TEST)?;
    run(Command::new("bash").arg(script).args(what).arg(place))
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
