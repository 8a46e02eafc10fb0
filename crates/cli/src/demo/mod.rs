//! The demonstration: the main job, shown on an image made of this machine's own files.
//!
//! ```text
//! DIR/vellum-demo-PID/
//!   scratch/       layers' tars, image.tar (the image as an OCI archive), copy-N (plain copies of the tree)
//!   store/         a store of its own
//! ```
//!
//! 1. Files are chosen ([`files`]), written as four layers ([`image`]) and loaded.
//! 2. A container is made, mounted, entered ([`mod@inside`]), looked at, committed.
//! 3. A hundred more are made, beside plain copies of the tree.
//! 4. Everything is unmounted and deleted, also when a step failed.

mod files;
mod image;
mod inside;
mod steps;

pub(crate) use inside::run as inside;

use crate::cli::Global;
use crate::context;
use crate::failure::{Result, io};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The store's folder in it.
const STORE: &str = "store";

/// The folder of the demonstration, gone when dropped.
struct Place(PathBuf);

impl Place {
    /// Makes it. Found is one that this process made before it entered the namespace and began anew, which keeps its number.
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("vellum-demo-{}", std::process::id()));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.join(STORE).is_dir() => {}
            made => made.map_err(io(format!("make the folder {}", path.display())))?,
        }
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left is named by the path; there is nobody to tell here.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the demonstration in a folder of its own in `parent`.
pub(crate) fn run(global: &Global, parent: Option<&Path>) -> Result<()> {
    let given = || std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_dir());
    let parent = parent.map(Path::to_owned).or_else(given).unwrap_or_else(|| "/var/tmp".into());
    let parent = std::path::absolute(&parent).map_err(io(format!("tell where {} is", parent.display())))?;
    let place = Place::new(&parent)?;
    let store = place.0.join(STORE);
    context::enter(&store, true)?;
    let namespace = context::Namespace::of(&store, true)?;
    let outcome = steps::all(global, &place.0, &store);
    drop(place);
    namespace.end()?;
    outcome
}
