//! Image archives, read and written: OCI layouts and docker archives.
//!
//! - [`Archive`] opens a folder, a tar, a compressed tar or a pipe, tells its form by its content, and gives its
//!   [`Image`]s, whose layers are read in place by the store.
//! - [`save`] writes images of a store as an OCI layout or a docker archive, the same bytes every time.
//!
//! Everything read is taken for hostile: documents have limits on size, depth and number, each is checked against the
//! descriptor that names it, and no path leads out of the archive. Nothing here prints, and nothing is extracted.

mod error;
mod media;
mod read;
mod spec;
mod spool;
mod write;

pub use error::{Error, Result};
pub use read::{Archive, Format, Image, Layer};
pub use write::{NewImage, Output, SaveFormat, SaveImage, SaveOptions, build, save};
