//! The mounter.

use crate::{Error, Result};
use std::path::PathBuf;
use vellum_driver::{MountPlan, View, Views};
use vellum_types::LayerId;

/// A layer that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRecord {
    /// The layer.
    pub layer: LayerId,
    /// Where.
    pub target: PathBuf,
    /// How many times it was acquired and not yet released.
    pub count: u32,
    /// Without a writable top.
    pub read_only: bool,
}

/// What a release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Released {
    /// The mount is gone now.
    pub unmounted: bool,
    /// How many users are left.
    pub left: u32,
}

/// What a sweep took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Swept {
    /// Records of mounts that are gone.
    pub records: u32,
    /// Shared mounts and devices that nobody used any more.
    pub steps: u32,
    /// Empty mountpoints.
    pub mountpoints: u32,
}

/// Performs mount plans. Cheap to make; may be shared by threads, and by any number of processes.
#[derive(Debug)]
pub struct Mounter {
    runtime: PathBuf,
    mountpoints: PathBuf,
}

/// The runtime folder of the store with this id: /run/vellum/ID as root, $XDG_RUNTIME_DIR/vellum/ID otherwise, /tmp/vellum-UID/ID
/// where there is no such folder. Made if need be, private to this user.
///
/// # Errors
/// It cannot be made, or belongs to somebody else, or others may enter it.
pub fn runtime_folder(store: &str) -> Result<PathBuf> {
    let _ = store;
    Err(Error::plan("being written"))
}

impl Mounter {
    /// A mounter that keeps its records in `runtime` and mounts below `mountpoints`. Both are made (0700) if missing; `runtime`'s owner and
    /// mode are checked.
    ///
    /// # Errors
    /// A folder cannot be made or is not private.
    pub fn new(runtime: impl Into<PathBuf>, mountpoints: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { runtime: runtime.into(), mountpoints: mountpoints.into() })
    }

    /// Mounts the layer, or counts one more user of its mount; the path where it is. (Get)
    ///
    /// # Errors
    /// The kernel's; [`Error::Elsewhere`], [`Error::Different`].
    pub fn acquire(&self, id: LayerId, plan: &MountPlan) -> Result<PathBuf> {
        let _ = (id, plan, &self.runtime, &self.mountpoints);
        Err(Error::plan("being written"))
    }

    /// Counts one user less, and unmounts with the last. A layer that is not mounted is fine. (Put)
    ///
    /// # Errors
    /// [`Error::Busy`]: nothing changed, the last user still counts.
    pub fn release(&self, id: LayerId) -> Result<Released> {
        let _ = id;
        Err(Error::plan("being written"))
    }

    /// Unmounts whatever the count. With `lazy`, also when it is in use: processes in it keep what they see.
    ///
    /// # Errors
    /// [`Error::Busy`], unless `lazy`.
    pub fn release_all(&self, id: LayerId, lazy: bool) -> Result<Released> {
        let _ = (id, lazy);
        Err(Error::plan("being written"))
    }

    /// Whether and where the layer is mounted, as the kernel sees it now.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn mounted(&self, id: LayerId) -> Result<Option<MountRecord>> {
        let _ = id;
        Ok(None)
    }

    /// All layers that are mounted, by id.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn list(&self) -> Result<Vec<MountRecord>> {
        Ok(Vec::new())
    }

    /// Cleans up after killed processes and a reboot: records of mounts that are gone, shared mounts and devices without a user, empty
    /// mountpoints. Never touches a mount that is recorded and there. May run at any time, in any number of processes.
    ///
    /// # Errors
    /// A folder cannot be read. What cannot be cleaned because it is in use is left for the next sweep.
    pub fn sweep(&self) -> Result<Swept> {
        Ok(Swept::default())
    }
}

impl Views for Mounter {
    fn view(&self, plan: &MountPlan) -> vellum_driver::Result<Box<dyn View>> {
        let _ = plan;
        Err(Error::plan("being written").into())
    }
}
