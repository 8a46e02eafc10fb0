//! Layer archives.
//!
//! A layer travels as a tar (OCI image specification, "Image Layer Filesystem Changeset") and
//! lives as something else: a folder, a subvolume, objects. This crate is all that lies between:
//!
//! ```text
//!   blob ── decompress ── parse ──┬── Target (a driver's own: folder, objects, …)
//!           (by content)          ├── recipe    (what gives the tar back bit for bit)
//!                                 └── manifest  (what check compares the disk with)
//!
//!   folder ── diff ── write tar ── compress ── blob
//! ```
//!
//! It owns nothing on disk: callers say where recipes and manifests go.

pub mod apply;
pub mod attributes;
pub mod compression;
pub mod digest;
pub mod folder;
pub mod manifest;
pub mod nested;
pub mod recipe;
pub mod tar;
pub mod target;
pub mod tree;
mod wire;
pub mod write;

/// The namespace of the attributes that overlayfs and Vellum keep on a layer's files. Recorded with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XattrForm {
    /// `trusted.overlay.*`: needs privileges on the host.
    Trusted,
    /// `user.overlay.*`, with the mount option `userxattr`: works in a user namespace.
    User,
}
