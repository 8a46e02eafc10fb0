//! Front ends' snapshots.

use crate::{Error, Result, Store};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use vellum_archive::target::Usage;
use vellum_driver::{MountOptions, MountPlan};
use vellum_types::LayerId;

/// What a snapshot is, in containerd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Being written.
    Active,
    /// A read-only look at its parent.
    View,
    /// Never changes again.
    Committed,
}

/// A front end's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotRow {
    /// Its key (active, view) or name (committed), unique in the front end's namespace.
    pub key: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// The snapshot it lies on.
    pub parent: Option<String>,
    /// Its layer on disk.
    pub layer: LayerId,
    /// The front end's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
    /// When its labels or its kind changed last.
    pub updated: Timestamp,
}

/// What a snapshot takes on disk by itself.
pub type SnapshotUsage = Usage;

/// The snapshots of one front end.
#[derive(Debug)]
pub struct Snapshots<'a> {
    pub(crate) store: &'a Store,
    pub(crate) namespace: String,
}

impl Snapshots<'_> {
    /// Makes an active snapshot.
    ///
    /// # Errors
    /// The key is taken; there is no such parent, or it is not committed.
    pub fn prepare(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<SnapshotRow> {
        let _ =
            (self.store, &self.namespace, key, parent, labels, MountOptions::default(), MountPlan::default());
        Err(Error::not_found("snapshot", key))
    }
}
