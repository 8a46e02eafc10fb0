//! The overlay driver: one overlayfs mount a container.
//!
//! # On disk
//!
//! ```text
//!   HOME/                    0700
//!     <id>/                  0700, a layer
//!       diff/                what the layer itself brings: overlayfs's whiteouts, opaque marks, redirects
//!       work/                overlayfs's scratch, while the layer is active
//!       lower                `active c:b:a`: what the layer is, and the whole chain below, nearest first
//!     L/<id> -> ../<id>/diff of every committed layer: short names for mount strings
//!     .none                  an empty folder: the lower layer of those that have none
//!     .features              what was probed here, and on which boot, kernel and file system
//! ```
//!
//! A view has neither `diff` nor `work`. Ids are lower case, so `L` is no layer's. (Docker's `l` would be that of number 21.)
//! `lower` tells the chain whole, so that create and mounts read one file however deep the layer lies.
//!
//! **Lock rule**: the caller holds the lock of the layer that a call is about; layers below are committed and do not change. Nothing else is
//! locked: `L`, `.none` and `.features` are made by whoever comes first, in one step each.
//!
//! # Algorithms
//!
//! *create*: 1. make `<id>` (who makes it owns the id); 2. `diff`, with owner, mode and attributes of the parent's, and `work`; 3. `lower`: the layer is there.
//! *commit*: 1. do the joints; 2. remove `work`; 3. make the name in `L`; 4. replace `lower` by a rename: the layer is committed.
//! *remove*: 1. remove the name in `L`; 2. rename `<id>` into the trash. Each begins again where it was interrupted, and a folder without
//! a whole `lower` is half made: only `remove` takes it.
//!
//! *mounts*: `lowerdir+` for each layer of the chain, and for an active layer `upperdir` and `workdir`. The layer itself is the nearest
//! lower when it is mounted read-only. Where overlayfs wants one lower more than there is, `.none` comes last: so a layer is
//! never shown as it lies on disk, with its whiteouts and escaped attributes, and a container on no image cannot forge overlayfs's marks.
//!
//! *diff* to the own parent: the walk goes through `diff` only and looks each name up in a view of the parent
//! ([`vellum_driver::guided_diff`]), so the kernel itself says what lies below. A whiteout is a deletion if the parent has the
//! name. An opaque directory is compared whole. A directory that was renamed (`redirect`) and a file of which only
//! owner or mode changed (`metacopy`) are read in a view of the whole tree, which is mounted only if there is one.
//!
//! # Options
//!
//! As root `redirect_dir=on,metacopy=on` where the kernel has them: a directory of the image can be renamed, and `chown -R` copies no
//! data. Where somebody else performs the mount `metacopy=off`: BuildKit sets `redirect_dir=off`, which excludes it, and reads the upper
//! folder without asking for the data of a file that has none there. With `userxattr` the kernel allows neither. `index=off`: an upper that was copied or is seen by two views would
//! be refused otherwise, and nothing here is exported by NFS. `xino` is left to the kernel: all layers lie on one file system,
//! where inode numbers are stable without it. `volatile` only on request; [`Driver::sync`](vellum_driver::Driver::sync) takes its mark away.
//!
//! # Whiteouts of an inner overlay
//!
//! A character device 0:0 in an archive is kept as [`vellum_archive::nested`] tells. *commit* marks the directories that have such files, and
//! where the record of the parent says ` nested`, every own directory that is laid over a marked one; only then does it walk the layer.
//!
//! # What can go wrong
//!
//! - The upper of a mounted container is read by `diff` and `copy`: what changes meanwhile is told in its old or its new state.
//! - Containers are hostile: their trees are deep, their links lead anywhere. Only single names are opened, never through a link.
//! - `trusted.overlay.origin` of a copied upper names the same lower file as before, which is right; `trusted.overlay.uuid` would
//!   make two mounts one and is left out of copies.
//! - A hard link between names of a lower layer breaks at the first write, as always with overlayfs without index.

mod driver;
mod factory;

mod joints;
mod lowers;

pub use driver::Overlay;
pub use factory::{FACTORY, OverlayFactory};
