//! What Vellum's tests share. Nothing here is part of the product.
//!
//! - [`conformance`]: what every storage driver must do.
//! - [`tree`]: file trees told as data, made on disk, read back and compared entry by entry.
//! - [`image`]: images for tests, made of such trees or of Debian's packages.
//! - [`scratch`]: file systems for tests, which go away with the test, also when it fails or is killed.
//! - [`whole`]: a file's content in one piece, for drivers' targets.
//! - [`skip!`]: a test that cannot run here says why, and is counted.
//! - [`fault`]: children that die at a named point.
//! - [`engine`]: containerd and Docker, run by tests.
//! - [`golang`]: Go programs of the tests, built out of what Debian packages.

pub mod conformance;
pub mod engine;
pub mod fault;
pub mod golang;
pub mod image;
pub mod older;
pub mod scratch;
pub mod skip;
pub mod tree;
pub mod whole;
