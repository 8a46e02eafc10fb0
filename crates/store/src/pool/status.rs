//! How a pool stands.

use super::device::{self, Found};
use super::{Facts, PoolFs, image, missing, mountpoint};
use crate::layout::Layout;
use crate::open::absolute;
use crate::{Code, Error, Floor, OpenOptions, Result, Store};
use serde::Serialize;
use std::path::PathBuf;
use vellum_sys::fsinfo::FileSystem;

/// How a pool stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// The file system in it.
    pub fs: PoolFs,
    /// The file.
    #[serde(serialize_with = "vellum_types::path_as_text")]
    pub image: PathBuf,
    /// Where it is mounted, when it is.
    #[serde(serialize_with = "vellum_types::path_as_text")]
    pub mountpoint: PathBuf,
    /// Whether it is mounted there.
    pub mounted: bool,
    /// The loop device, when there is one.
    #[serde(serialize_with = "vellum_types::optional_path_as_text")]
    pub device: Option<PathBuf>,
    /// Its room was taken from the host when it was made.
    pub preallocated: bool,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Bytes that the file takes on the host.
    pub allocated: u64,
    /// Bytes used in it; `None` when it is not mounted.
    pub used: Option<u64>,
    /// Bytes free in it; `None` when it is not mounted. The host may have fewer: see `missing`.
    pub free: Option<u64>,
    /// Bytes free on the host.
    pub host_free: u64,
    /// Bytes that are kept free on the host.
    pub host_floor: u64,
    /// Bytes that the pool promises beyond what the host can give.
    pub missing: u64,
    /// Its file system has failed, and this is how.
    pub failure: Option<String>,
}

impl Store {
    /// How the pool of the store at `options.root` stands. Opens nothing, mounts nothing; works also when the pool has failed.
    ///
    /// # Errors
    /// [`Code::NotFound`]: there is none; the file system's.
    pub fn pool_status(options: &OpenOptions) -> Result<PoolStatus> {
        of(&Layout::new(absolute(&options.root)?), &options.floor)
    }
}

pub(crate) fn of(layout: &Layout, floor: &Floor) -> Result<PoolStatus> {
    let facts = Facts::of(layout)?.ok_or_else(|| missing(layout, "look at the store's pool"))?;
    let host = FileSystem::at(&layout.pool())
        .map_err(|e| Error::io("look at the file system of", layout.pool(), e))?;
    let (size, allocated) = device::allocated(layout)?;
    let (fs, failure) = match device::look(layout, &facts) {
        Found::Sound(root) => (FileSystem::of(&root).ok(), None),
        Found::Failed(reason) => (None, Some(reason)),
        Found::Nothing => (None, None),
        Found::Other => (None, Some("something else is mounted there".to_owned())),
    };
    let host_floor = floor.of(&host);
    let promised = if facts.preallocated { 0 } else { size.saturating_sub(allocated) };
    Ok(PoolStatus {
        fs: facts.fs,
        image: image(layout),
        mountpoint: mountpoint(layout),
        mounted: fs.is_some() || failure.is_some(),
        device: device::attached(layout).map(|device| device.path().to_owned()),
        preallocated: facts.preallocated,
        size,
        allocated,
        used: fs.as_ref().map(|fs| fs.total_bytes.saturating_sub(fs.free_bytes)),
        free: fs.as_ref().map(|fs| fs.free_bytes),
        host_free: host.free_bytes,
        host_floor,
        missing: promised.saturating_sub(host.free_bytes.saturating_sub(host_floor)),
        failure,
    })
}

/// Whether the host has next to nothing left.
pub(super) fn host_is_full(layout: &Layout) -> bool {
    FileSystem::at(layout.root()).is_ok_and(|host| host.free_bytes < 16 << 20)
}

/// Says of an error whether it comes of the pool, and what to do then.
pub(crate) fn explain(layout: &Layout, error: Error) -> Error {
    let Ok(Some(facts)) = Facts::of(layout) else { return error };
    if error.code() == Code::Full {
        // What else was being written fails too, of work that is rolled back; nobody else shall hear of that.
        let _ = crate::layout::open_folder(layout.data()).map(rustix::fs::syncfs);
    }
    match device::look(layout, &facts) {
        Found::Failed(reason) => {
            let told = super::open::failed(layout, &reason);
            let hint = told.hint().unwrap_or_default().to_owned();
            Error::caused(told.code(), "go on: the file system of the store's pool has failed", error)
                .object(mountpoint(layout).display())
                .with_hint(hint)
        }
        Found::Sound(root) if error.code() == Code::Full && error.hint().is_none() => {
            let free = |fs: std::io::Result<FileSystem>| fs.map_or(0, |fs| fs.free_bytes >> 20);
            let (pool, host) = (free(FileSystem::of(&root)), free(FileSystem::at(layout.root())));
            error.with_hint(format!(
                "the store's pool has {pool} MiB free and grows by itself, and the host's disk, which gives it its blocks, has {host} MiB: make room there"
            ))
        }
        _ => error,
    }
}
