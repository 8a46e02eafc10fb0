//! Layers, images and containers over the drivers: durable, shared by many processes, checked.
//!
//! # What it owns
//!
//! ```text
//! ROOT/                         0711; 0700 of a user's own store
//!   store.json                  identity: id, driver, form of attributes; known without the catalog   [`open`]
//!   id                          the id, of a store that was entered before it was made                [`id`]
//!   catalog.db, -wal, -shm      what the store has                                                    [`catalog`]
//!   locks/                      who works on what, and who lives                                      [`locks`]
//!   config/<hex>                images' configurations, byte for byte
//!   images/<driver>/<hex>.json  images' names and layers, for a rebuilt catalog                       [`layerfiles`]
//!   layers/<driver>/<id>/       layer.json, manifest, recipe; the folder is the layer's lock          [`layerfiles`]
//!   blobs/sha256/<hex>          blobs as they came, when they are kept
//!   tmp/                        blobs on their way there, named by the operation
//!   reserve                     room for the catalog on a full disk                                     [`reserve`]
//!   trash/<driver>/             what was removed and is not deleted yet                               [`trash`]
//!   <driver>/                   the driver's own
//!   mnt/                        the mounter's mountpoints
//!   pool/                       a pool: there, and not here, lie config/ to tmp/, trash/ and <driver>/   [`pool`]
//! RUNTIME/                      the mounter's records
//! ```
//!
//! All folders are 0700, so that nothing of a layer (a setuid program, a private key) can be reached by other users of the host.
//!
//! # Rules
//!
//! 1. *Intent, work, ready.* An operation announces itself by a lock that the kernel lets go when it dies ([`locks`]), writes
//!    its intent into the catalog without a sync, works, brings its work to the disk, and makes it ready in one durable transaction.
//! 2. *On disk and in no row is garbage; a row that is not ready and whose owner is dead is rolled back.* [`recovery`] has the
//!    table.
//! 3. *Removed means recorded.* A removal is one durable transaction; renames into the trash and the deletion follow, in a server
//!    behind its answer ([`keeper`]).
//! 4. *Nothing waits while it holds the catalog*, and no order of locks is ever reversed ([`locks`]).
//! 5. The catalog is the truth, and can be made anew from what lies beside it ([`rebuild`]).
//!
//! # The operations
//!
//! Each module opens with its numbered algorithm: load ([`load`]), create, mount and remove ([`containers`]), commit, import and
//! export ([`stream`]), snapshot and rollback ([`savepoints`]), images' names and removal ([`images`]), garbage collection
//! ([`gc`]), check ([`check`], [`verify`]) and repair ([`repair`], [`mend`], [`rebuild`]), front ends' snapshots ([`views`], [`adopt`], [`implied`]), docker's layers ([`graph`]), pools ([`pool`]), reset ([`reset`]).
//!
//! # Where a crash leaves what
//!
//! The fault points of [`FAULT_POINTS`] are before and after each durable step; a test kills the process at every one of them.
//!
//! | operation | killed before ready | killed after | a power cut before ready | after |
//! |---|---|---|---|---|
//! | load | intents rolled back at the next open; layers of earlier groups stay ready, the next load uses them, `gc` takes them | image there | the same, or the intents are lost too: folders in no row, swept at boot and by `gc` | image there, and verifies |
//! | create | nothing in the catalog; files under an id that the next layer gets ([`fresh`]) | there | the same | there, made whole |
//! | commit, import | layer rolled back; a configuration in no row is taken by `gc` | there | the same | there |
//! | snapshot | save point and copy rolled back | there | the same | there |
//! | rollback | the container has its old layer; the copy is rolled back | it has the new one; the old one's removal is finished at the next open | as killed before | as killed after |
//! | remove | nothing happened | removal finished at the next open | nothing happened | finished at the next open |
//! | gc | nothing happened, or some items are gone | the rest at the next | the same | the same |
//! | repair of a layer | the layer is damaged as before, and the next load or repair does it | mended, or the replacement is finished at the next open | the same | mended |
//! | making or removing a pool | `pool/` is taken away at the next open; the store has none | it has one, or none any more | the same | the same |
//! | rebuild of the catalog | the damaged one is still there | the new one is | the same | the same |

#![allow(rustdoc::private_intra_doc_links)]

mod adopt;
mod catalog;
mod check;
mod containers;
mod drivers;
mod error;
mod faults;
mod files;
mod findings;
mod fresh;
mod gc;
mod graph;
mod id;
mod imageconfig;
mod images;
mod implied;
mod keeper;
mod layerfiles;
mod layout;
mod load;
mod locks;
mod mend;
mod model;
mod open;
mod pool;
mod rebuild;
mod recovery;
mod repair;
mod reserve;
mod reset;
mod savepoints;
mod store;
mod stream;
pub mod trash;
mod usage;
mod verify;
mod views;

pub use error::{Code, Error, Result};
pub use faults::FAULT_POINTS;
pub use findings::{FINDINGS, FindingKind};
pub use graph::Graph;
pub use keeper::Keeper;
pub use model::*;
pub use pool::{PoolCheck, PoolFs, PoolSpec, PoolStatus};
pub use store::Store;
pub use views::{Labels, Mapping, SnapshotKind, SnapshotRow, Snapshots};
