//! Taking a pool off its mountpoint, and away.

use super::{FACTS, Facts, UNMADE, device, lock, missing};
use crate::catalog::Catalog;
use crate::faults::point;
use crate::layout::Layout;
use crate::open::{Identity, absolute};
use crate::{Error, OpenOptions, Result, Store, files};
use vellum_mount::Mounter;
use vellum_sys::lock::FileLock;

impl Store {
    /// Takes the pool off its mountpoint, and its loop device away. The next process that opens the store mounts it again.
    ///
    /// # Errors
    /// [`crate::Code::NotFound`]: there is no pool; [`crate::Code::InUse`]: the store is open, or a container is mounted.
    pub fn pool_unmount(options: &OpenOptions) -> Result<()> {
        const WHAT: &str = "unmount the store's pool";
        super::must_be_root(WHAT)?;
        let layout = Layout::new(absolute(&options.root)?);
        Facts::of(&layout)?.ok_or_else(|| missing(&layout, WHAT))?;
        let _store = crate::locks::whole_store(&layout, WHAT)?;
        let _locks = (lock(&layout)?, wait_for_trash(&layout)?);
        let_go(&layout, options)
    }

    /// Takes the pool away. The store has to be empty, and goes on without one.
    ///
    /// # Errors
    /// [`crate::Code::NotFound`]: there is no pool; [`crate::Code::InUse`]: the store has layers, or is open, or somebody is in the pool.
    pub fn pool_remove(options: &OpenOptions) -> Result<()> {
        const WHAT: &str = "remove the store's pool";
        super::must_be_root(WHAT)?;
        let layout = Layout::new(absolute(&options.root)?);
        Facts::of(&layout)?.ok_or_else(|| missing(&layout, WHAT))?;
        let _store = crate::locks::whole_store(&layout, WHAT)?;
        let catalog = crate::catalog::exists(&layout.catalog());
        if !catalog {
            // What lies in it says then whether the store is empty.
            drop(super::ready(&layout)?);
        }
        let hint = "remove them (`vellum rm`, `vellum rmi`, `vellum gc`), or remove the store as a whole: `vellum system reset`";
        super::must_be_empty(&layout, WHAT, hint)?;
        let _locks = (lock(&layout)?, wait_for_trash(&layout)?);
        let_go(&layout, options)?;
        point("store.pool.unmounted")?;
        if catalog {
            super::open::note(&Catalog::open(&layout.catalog(), &layout.lock("write"), false)?, false)?;
        }
        super::rename_facts(&layout, FACTS, UNMADE)?;
        remains(&layout.again())
    }
}

/// Takes the pool off, unless somebody needs it; then it stays as it is.
pub(super) fn let_go(layout: &Layout, options: &OpenOptions) -> Result<()> {
    refuse_mounted(layout, options)?;
    device::unmount(layout, false).inspect_err(|_| {
        // Overlays hold on to what they lie on without its mountpoint, and whoever is in them goes on; so does the store.
        if let (false, Ok(Some(facts))) = (device::is_mounted(layout), Facts::of(layout)) {
            let _ = device::mount(layout, facts.fs, facts.preallocated);
        }
    })
}

/// Refuses while the store's own mounter has something mounted.
fn refuse_mounted(layout: &Layout, options: &OpenOptions) -> Result<()> {
    let Some(identity) = Identity::read(layout).ok().flatten() else { return Ok(()) };
    let runtime = match &options.runtime {
        Some(runtime) => runtime.clone(),
        None => vellum_mount::runtime_folder(&identity.uuid).map_err(Error::from)?,
    };
    let mounter = Mounter::new(runtime, layout.mountpoints()).map_err(Error::from)?;
    // Records of mounts that are gone are taken away.
    let _ = mounter.sweep().map_err(Error::from)?;
    if mounter.list().map_err(Error::from)?.is_empty() { Ok(()) } else { Err(device::busy(layout)) }
}

/// The worker of the trash has files of the pool open.
pub(super) fn wait_for_trash(layout: &Layout) -> Result<FileLock> {
    let path = layout.lock("trash");
    FileLock::exclusive(&path).map_err(|e| Error::io("take the lock", path, e))
}

/// Takes away what is in `pool/` of a store that has no pool. The caller holds the lock.
pub(super) fn remains(layout: &Layout) -> Result<()> {
    let (folder, file) = (layout.pool(), super::image(layout));
    if layout.has_pool() || !folder.exists() {
        return Ok(());
    }
    if file.exists() {
        if !folder.join(UNMADE).exists() {
            // Whether it is wanted, the catalog says.
            return Ok(());
        }
        device::unmount(layout, false)?;
        files::remove_any(&file)?;
        point("store.pool.deleted")?;
    }
    files::remove_any(&folder)?;
    point("store.pool.removed")
}

/// Lets go of a pool that is to be deleted with its store, sound or not: users keep what they see until they end.
pub(crate) fn take_off_for_reset(layout: &Layout) -> Result<()> {
    if !layout.pool().exists() {
        return Ok(());
    }
    let _locks = (lock(layout)?, wait_for_trash(layout)?);
    device::unmount(layout, true)
}
