//! The open store, and what its operations share.

use crate::catalog::Catalog;
use crate::catalog::layers::Layer;
use crate::keeper::Desk;
use crate::layout::Layout;
use crate::locks::{self, Owner, OwnerId};
use crate::open::Identity;
use crate::{Code, DriverRow, Error, Floor, Info, OpenOptions, Result, Snapshots, drivers};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use vellum_driver::{Capabilities, Driver};
use vellum_mount::Mounter;
use vellum_sys::fsinfo::FileSystem;
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

/// An open store. Cheap to open; may be shared by threads, and by any number of processes.
#[derive(Debug)]
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) runtime: PathBuf,
    pub(crate) catalog: Catalog,
    pub(crate) identity: Identity,
    /// The driver that new layers and images go to.
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) driver_reason: String,
    /// Every driver that was needed so far.
    pub(crate) drivers: Mutex<BTreeMap<String, Arc<dyn Driver>>>,
    pub(crate) mounter: Mounter,
    pub(crate) worker: Option<Vec<OsString>>,
    pub(crate) floor: Floor,
    pub(crate) workers: Option<usize>,
    pub(crate) read_only: Option<String>,
    /// The pool's root, open: nobody takes the pool off while the store is open.
    pub(crate) _pool: Option<OwnedFd>,
    /// What a keeper does behind the requests, if there is one.
    pub(crate) desk: OnceLock<Desk>,
    /// Fresh layers that this process has made or found whole: only a power cut takes of them, and with them this process.
    pub(crate) whole: Mutex<BTreeSet<LayerId>>,
    pub(crate) _lock: FileLock,
}

impl Store {
    /// The store's folder.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The folder that the data lies in: the store's folder, or its pool's root.
    pub fn data(&self) -> &Path {
        self.layout.data()
    }

    /// The folder for files that are needed for a moment. What is left in it by a process that died is swept, unless its name begins with the
    /// number of an operation that lives or somebody holds its lock.
    pub fn spool(&self) -> PathBuf {
        self.layout.tmp()
    }

    /// The driver that new layers go to.
    pub fn driver_name(&self) -> &'static str {
        self.driver.name()
    }

    /// What the driver that new layers go to can do here.
    pub fn capabilities(&self) -> &Capabilities {
        self.driver.capabilities()
    }

    /// What each driver says of a place, whether or not a store is there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn probe_drivers(options: &OpenOptions) -> Result<Vec<DriverRow>> {
        drivers::probe_place(options)
    }

    /// Every driver: whether it works here and why, and which is in use.
    pub fn drivers(&self) -> Vec<DriverRow> {
        drivers::probe_all(&self.layout, self.identity.rootless, Some(&*self.driver))
    }

    /// What the store is and has.
    ///
    /// # Errors
    /// The catalog's, the driver's.
    pub fn info(&self) -> Result<Info> {
        let (images, (containers, layers, save_points)) = self.catalog.read(|tx| {
            Ok((
                crate::catalog::images::all(tx, self.driver.name())?.len(),
                crate::catalog::containers::counts(tx)?,
            ))
        })?;
        Ok(Info {
            root: self.layout.root().to_owned(),
            runtime: self.runtime.clone(),
            uuid: self.identity.uuid.clone(),
            driver: self.driver.name().to_owned(),
            driver_reason: self.driver_reason.clone(),
            status: self.driver.status()?,
            capabilities: self.driver.capabilities().clone(),
            format: crate::catalog::schema::VERSION.unsigned_abs(),
            xattrs: self.identity.xattrs,
            rootless: self.identity.rootless,
            read_only: self.read_only.clone(),
            images,
            containers,
            mounted: self.mounter.list().map_err(Error::from)?.len(),
            layers,
            save_points,
            pool: match self.layout.has_pool() {
                true => Some(crate::pool::status_of(&self.layout, &self.floor)?),
                false => None,
            },
        })
    }

    /// The snapshots of a front end, such as `containerd/k8s.io`.
    pub fn snapshots(&self, namespace: &str) -> Snapshots<'_> {
        Snapshots { store: self, namespace: namespace.to_owned() }
    }

    /// The driver of a layer that may have been made by another one than [`Store::driver`].
    pub(crate) fn driver_named(&self, name: &str) -> Result<Arc<dyn Driver>> {
        if name == self.driver.name() {
            return Ok(Arc::clone(&self.driver));
        }
        let mut drivers = self.drivers.lock().map_err(|_| {
            Error::new(Code::System, "use another driver", "a thread that held the list of drivers failed")
        })?;
        if let Some(driver) = drivers.get(name) {
            return Ok(Arc::clone(driver));
        }
        let driver = drivers::open(&self.layout, name, self.identity.config())?;
        drivers.insert(name.to_owned(), Arc::clone(&driver));
        Ok(driver)
    }

    /// Begins an operation that will have intents.
    pub(crate) fn announce(&self) -> Result<Owner> {
        Owner::announce(&self.layout)
    }

    /// What this operation itself pinned does not count: it is about to end.
    pub(crate) fn others_live(&self, own: OwnerId) -> impl FnMut(OwnerId) -> Result<bool> + '_ {
        move |owner| Ok(owner != own && locks::lives(&self.layout, owner)?)
    }

    /// Refuses a write of unknown size when the file system is nearly full, or that of the host of a pool; a pool that fills is made larger first.
    pub(crate) fn check_floor(&self, operation: &str) -> Result<()> {
        crate::reserve::keep(&self.layout);
        // A pool that cannot be made larger may still have room.
        let _ = self.pool_tend();
        self.layout.file_systems().try_for_each(|folder| self.check_floor_at(folder, 0, operation))
    }

    /// As [`Store::check_floor`], of the file system that a pool's file lies on, when what is written will take so many bytes more.
    pub(crate) fn check_host_floor(&self, more: u64, operation: &str) -> Result<()> {
        self.check_floor_at(self.layout.root(), more, operation)
    }

    fn check_floor_at(&self, root: &Path, more: u64, operation: &str) -> Result<()> {
        let mut fs = FileSystem::at(root).map_err(|e| Error::io("look at the file system of", root, e))?;
        fs.free_bytes = fs.free_bytes.saturating_sub(more);
        let floor = self.floor.of(&fs);
        let refuse = |reason: String| {
            Err(Error::new(Code::Full, operation, reason).object(root.display()).with_hint(
                "free some space: `vellum gc` gives back what nothing needs, `vellum df` shows what takes it",
            ))
        };
        if fs.free_bytes < floor {
            return refuse(format!(
                "only {} MiB are free on the file system, and {} MiB are kept in reserve",
                fs.free_bytes >> 20,
                floor >> 20
            ));
        }
        match (fs.free_inodes, fs.total_inodes) {
            (Some(free), Some(total)) if free < self.floor.inodes.min(total / 2) => {
                refuse(format!("only {free} more files can be made on the file system"))
            }
            _ => Ok(()),
        }
    }

    /// Takes layers off the disk that the catalog already calls `removing`, and forgets them. What fails is left to the next
    /// sweep: for the catalog they are gone.
    pub(crate) fn finish_removal(&self, layers: &[Layer]) -> Result<()> {
        self.take_off(layers).map(drop)
    }

    /// As [`Store::finish_removal`]; gives those that are gone.
    pub(crate) fn take_off(&self, layers: &[Layer]) -> Result<Vec<LayerId>> {
        let mut gone = Vec::with_capacity(layers.len());
        for layer in layers {
            crate::faults::point("store.remove.folder")?;
            if self.take_off_disk(&layer.driver, layer.id).is_ok() {
                gone.push(layer.id);
            }
        }
        crate::faults::point("store.remove.forget")?;
        if gone.is_empty() {
            return Ok(gone);
        }
        self.catalog.write(crate::catalog::Durability::Normal, |tx| {
            gone.iter().try_for_each(|id| crate::catalog::layers::forget(tx, *id))
        })?;
        Ok(gone)
    }

    /// Moves a layer to the trash, and deletes what the store keeps beside it.
    pub(crate) fn take_off_disk(&self, driver: &str, id: LayerId) -> Result<()> {
        let trash = self.layout.trash().join(driver);
        let _ = self.driver_named(driver)?.remove(id, &trash)?;
        crate::files::remove_any(&self.layout.layer(driver, id))
    }

    /// Undoes an operation that failed: its intents are rolled back, and what it had made by then goes. The error that
    /// made it fail is what the caller hears; what cannot be undone now is undone by the next sweep.
    pub(crate) fn roll_back(&self, owner: &Owner) {
        crate::reserve::release_if_full(&self.layout);
        let rolled = self.catalog.write(crate::catalog::Durability::Normal, |tx| {
            crate::catalog::intents::take_over(tx, owner.id, owner.id)
        });
        if let Ok(layers) = rolled
            && self.finish_removal(&layers).is_ok()
        {
            self.empty_trash_later();
        }
        let own = owner.temporary_prefix();
        for entry in crate::files::entries(&self.layout.tmp()).unwrap_or_default() {
            if entry.name.starts_with(&own) {
                let _ = crate::files::remove_any(&self.layout.tmp().join(entry.name));
            }
        }
        self.remove_unnamed_files();
    }

    /// Files that a failed operation put in place and that no row names now; when another operation is putting some in place, `gc`
    /// does it later.
    pub(crate) fn remove_unnamed_files(&self) {
        if let Ok(Some(_sweep)) = FileLock::try_exclusive(&self.layout.lock("sweep")) {
            let _ = self.collect_files(false);
        }
    }

    /// Runs an operation with intents, and rolls them back when it fails.
    pub(crate) fn operate<T>(&self, work: impl FnOnce(&Owner) -> Result<T>) -> Result<T> {
        let owner = self.announce()?;
        work(&owner).map_err(|e| {
            self.roll_back(&owner);
            crate::pool::explain(&self.layout, e)
        })
    }
}
