//! Taking a store off the disk whole, sound or not.
//!
//! 1. Lock `store` alone: no other process has it open.
//! 2. Everything mounted is unmounted, lazily; each driver lets go of what it holds, and removes its layers. A pool is taken off its mountpoint.
//! 3. What is the store's in its root is deleted, the identity last, so that an interrupted reset can be called again. The root stays if somebody
//!    keeps other things there.

use crate::layout::Layout;
use crate::open::Identity;
use crate::{Code, Error, OpenOptions, Result, Store, drivers, files, trash};
use vellum_mount::Mounter;

impl Store {
    /// Takes the store off the disk, damaged ones too: unmounts, deletes, forgets.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`] while another process has it open; the file system's.
    pub fn reset(options: &OpenOptions) -> Result<()> {
        let layout = Layout::new(
            std::path::absolute(&options.root).map_err(|e| Error::io("find the folder", &options.root, e))?,
        );
        if !crate::open::is_store(&layout) {
            return Err(Error::new(Code::NotFound, "reset the store", "there is none")
                .object(layout.root().display()));
        }
        crate::layout::make_folder(&layout.locks())?;
        let _lock = crate::locks::whole_store(&layout, "reset the store")?;
        let layout = layout.again();
        let pool = crate::pool::ready(&layout);
        if let Some(identity) = Identity::read(&layout).ok().flatten() {
            let runtime = match &options.runtime {
                Some(runtime) => runtime.clone(),
                None => vellum_mount::runtime_folder(&identity.uuid).map_err(Error::from)?,
            };
            unmount(&layout, &runtime)?;
            // What lies in a pool that cannot be mounted goes with its file.
            if pool.is_ok() {
                remove_layers(&layout, &identity)?;
            }
            files::remove_any(&runtime)?;
        }
        drop(pool);
        crate::pool::take_off_for_reset(&layout)?;
        crate::faults::point("store.reset.unmounted")?;
        let last = ["locks", "store.json"];
        for entry in files::entries(layout.root())? {
            if Layout::is_own(&entry.name) && !last.contains(&entry.name.as_str()) {
                files::remove_any(&layout.root().join(entry.name))?;
            }
        }
        crate::faults::point("store.reset.deleted")?;
        files::remove_any(&layout.root().join("store.json"))?;
        files::remove_any(&layout.locks())?;
        // It stays when it is a mountpoint, or when somebody keeps other things there.
        let _ = std::fs::remove_dir(layout.root());
        Ok(())
    }
}

fn unmount(layout: &Layout, runtime: &std::path::Path) -> Result<()> {
    let mounter = Mounter::new(runtime.to_owned(), layout.mountpoints()).map_err(Error::from)?;
    for record in mounter.list().map_err(Error::from)? {
        let _ = mounter.release_all(record.layer, true).map_err(Error::from)?;
    }
    let _ = mounter.sweep().map_err(Error::from)?;
    Ok(())
}

/// Layers may be more than folders (subvolumes, datasets), so the drivers remove them.
fn remove_layers(layout: &Layout, identity: &Identity) -> Result<()> {
    for entry in files::entries(&layout.layers())? {
        let Ok(factory) = drivers::factory(&entry.name) else { continue };
        // A driver that does not work here any more has left folders at most.
        let Ok(driver) = drivers::open(layout, factory.name(), identity.config()) else { continue };
        let trash = layout.trash().join(factory.name());
        let mut ids = Vec::new();
        driver.walk(&mut |id, _| {
            ids.push(id);
            Ok(())
        })?;
        for id in ids {
            let _ = driver.remove(id, &trash)?;
        }
        driver.cleanup()?;
    }
    trash::finish(layout).map(drop)
}
