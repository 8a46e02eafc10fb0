//! Fuzz targets: everything that reads what comes from outside, as functions that take bytes.
//!
//! ```text
//!   corpus/TARGET/NAME ──┬── tests/bounded.rs   replays it, then mutates it for a few seconds: part of `cargo test`
//!                        └── bin/guided.rs      libFuzzer, guided by coverage: `cargo xtask fuzz TARGET --minutes N`
//!                                │
//!                                ▼
//!                       targets::TARGET(bytes)  panics when something is not as it must be
//! ```
//!
//! A [`Target`] must not panic, whatever the bytes; what it asserts beyond that is said where it is defined. What a run finds
//! goes into the corpus under a name that says what it was, and stays there.
//!
//! Files are made in the folder for temporary files (`TMPDIR`), best on a tmpfs: a run makes millions of them.

mod choices;
mod jail;
mod mutate;
mod targets;
mod tars;

pub use mutate::{Mutator, Random};

/// One way in.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// What is fed, and what must hold.
    pub about: &'static str,
    /// Feeds it; panics when something is not as it must be.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "header",
        about: "tar headers, PAX records, sparse maps: every byte is accounted for, however it is cut into reads",
        run: targets::header::run,
    },
    Target {
        name: "apply",
        about: "layers into a folder, and into the driver composefs: nothing outside changes, what was applied verifies and comes back bit for bit, and both have the same",
        run: targets::apply::run,
    },
    Target {
        name: "compressed",
        about: "gzip and zstd streams: no end without an error or a whole stream",
        run: targets::compressed::run,
    },
    Target {
        name: "records",
        about: "recipes and manifests of layers, damaged: an error, never other bytes than the layer's",
        run: targets::records::run,
    },
    Target {
        name: "layout",
        about: "OCI layouts: index, manifest and configuration, with digests that fit",
        run: targets::documents::layout,
    },
    Target {
        name: "docker",
        about: "docker archives, old and new: manifest.json, repositories, configurations",
        run: targets::documents::docker,
    },
    Target {
        name: "stream",
        about: "whole image archives as a tar stream, compressed or not",
        run: targets::documents::stream,
    },
    Target {
        name: "catalog",
        about: "a store whose files were damaged: opened, checked and repaired, and nothing outside changes",
        run: targets::catalog::run,
    },
    Target {
        name: "whiteout",
        about: "two trees: their difference as a layer, applied to the first in both styles, gives the second",
        run: targets::whiteout::run,
    },
    Target {
        name: "names",
        about: "names of images, digests, platforms, paths: what is accepted says itself again",
        run: targets::names::run,
    },
];

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
