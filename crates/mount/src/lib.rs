//! Performs, counts and undoes mount plans.

mod error;
mod mounter;

pub use error::{Error, Holder, Result};
pub use mounter::{MountRecord, Mounter, Released, Swept, runtime_folder};
