//! The trash: what was removed and is not deleted yet.
//!
//! ```text
//! ROOT/trash/<driver>/<id>-…     moved here by the driver's `remove`, deleted by its `purge`
//! ```
//!
//! Deleting a layer of a hundred thousand files takes seconds, and on ext4 it slows down whoever creates files at the same time.
//! So a removal only renames, and a worker deletes later: a process of its own, detached, with idle priority, one at a time
//! (`locks/trash`). What takes less than starting a process is deleted at once.
//!
//! 1. A remover renames into the trash, then looks at `locks/trash`. When nobody holds it, it deletes the little there is, or starts
//!    a worker.
//! 2. The worker takes the lock, or ends. It deletes until the trash is empty.
//! 3. It lets the lock go and looks once more: who renamed between its last look and that moment saw the lock held and
//!    started nobody.
//!
//! What a driver cannot delete while a layer is being filled (the content that it would share) stays until the next load, removal or collection.
//!
//! Who is asked to have the space back when it returns (`gc`) waits for the worker's lock and does the rest itself.

use crate::catalog::{Catalog, Durability, layers};
use crate::layout::Layout;
use crate::open::Identity;
use crate::{Code, Error, Result, Store, drivers, files};
use std::path::Path;
use vellum_driver::Driver;
use vellum_sys::lock::{FileLock, is_held};

/// Empties the trash of the store at `root`, unless somebody is at it. For the detached worker.
///
/// # Errors
/// The file system's. What could not be deleted stays, and is tried again by the next worker.
pub fn work(root: &Path) -> Result<()> {
    let layout = Layout::new(root);
    let lock_path = layout.lock("trash");
    let failed = |e| Error::io("take the lock", &lock_path, e);
    loop {
        let Some(lock) = take(&lock_path).map_err(failed)? else { return Ok(()) };
        let deleted = empty(&layout)?;
        drop(lock);
        if deleted == 0 || list(&layout)?.is_empty() {
            return Ok(());
        }
    }
}

/// What waits in the trash: the driver, the entry's name, and the bytes of its folder.
pub(crate) fn measured(layout: &Layout) -> Result<Vec<(String, String, u64)>> {
    let measure = |(driver, name): (String, String)| {
        let bytes = files::bytes_of(&layout.trash().join(&driver).join(&name));
        (driver, name, bytes)
    };
    Ok(list(layout)?.into_iter().map(measure).collect())
}

/// Empties the trash before it returns, and says what went: a worker that is at it is waited for, and what it left is done here. What is shared with a layer that is
/// being filled stays until that is done.
///
/// # Errors
/// As [`work`]'s.
pub(crate) fn finish(layout: &Layout) -> Result<Vec<(String, String, u64)>> {
    let lock_path = layout.lock("trash");
    let lock = FileLock::exclusive(&lock_path).map_err(|e| Error::io("take the lock", &lock_path, e))?;
    let mut waited = measured(layout)?;
    empty(layout)?;
    drop(lock);
    // As a worker does: who renamed in the meantime saw the lock held.
    work(layout.root())?;
    let left = list(layout)?;
    waited.retain(|(driver, name, _)| !left.iter().any(|(d, n)| d == driver && n == name));
    Ok(waited)
}

/// Asking whether a lock is held takes it for a moment, so one refusal proves nothing.
fn take(path: &Path) -> std::io::Result<Option<FileLock>> {
    for _ in 0..5 {
        if let Some(lock) = FileLock::try_exclusive(path)? {
            return Ok(Some(lock));
        }
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    Ok(None)
}

/// What waits in the trash: (driver, name).
pub(crate) fn list(layout: &Layout) -> Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for driver in files::entries(&layout.trash())? {
        for entry in files::entries(&layout.trash().join(&driver.name))? {
            out.push((driver.name.clone(), entry.name));
        }
    }
    Ok(out)
}

fn empty(layout: &Layout) -> Result<usize> {
    let Some(identity) = Identity::read(layout)? else { return Ok(0) };
    let waiting = list(layout)?;
    if waiting.is_empty() {
        return Ok(0);
    }
    let catalog = Catalog::open(&layout.catalog(), &layout.lock("write"), false)?;
    let mut deleted = 0;
    let mut first_error = None;
    for (driver, name) in waiting {
        let path = layout.trash().join(&driver).join(&name);
        let purged = match drivers::factory(&driver) {
            Ok(_) => drivers::open(layout, &driver, identity.config())
                .and_then(|driver| purge(&catalog, &*driver, &path)),
            Err(_) => files::remove_any(&path),
        };
        match purged {
            Ok(()) => deleted += 1,
            // Another time: a load looks at the trash when it ends, and so do removals and collections.
            Err(e) if e.code() == Code::InUse => {}
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    first_error.map_or(Ok(deleted), Err)
}

/// Deletes one entry. What other layers shared with it is theirs now, and counted so.
fn purge(catalog: &Catalog, driver: &dyn Driver, path: &Path) -> Result<()> {
    let heirs = driver.purge(path)?;
    if !heirs.is_empty() {
        let measured: Vec<_> =
            heirs.into_iter().filter_map(|id| Some((id, driver.usage(id).ok()?))).collect();
        catalog.write(Durability::Normal, |tx| {
            measured.iter().try_for_each(|(id, usage)| layers::set_usage(tx, *id, Some(*usage)))
        })?;
    }
    crate::faults::point("store.trash.purged")
}

/// Entries in the trash that a command deletes at once.
const FEW: usize = 64;

/// The same for a keeper, on whom nobody waits.
const MANY: usize = 1024;

/// Whether a tree has no more entries than are left of `budget`, which it takes them from.
fn fits(path: &Path, budget: &mut usize) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else { return true };
    for entry in entries.flatten() {
        if *budget == 0 {
            return false;
        }
        *budget -= 1;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !fits(&entry.path(), budget) {
            return false;
        }
    }
    true
}

impl Store {
    /// Empties a trash that holds next to nothing; `false` if it is not so, or if somebody else is at it.
    fn empty_little_trash(&self, entries: &[(String, String)], little: usize) -> bool {
        let path = |(driver, name): &(String, String)| self.layout.trash().join(driver).join(name);
        let mut budget = little;
        let is_little = |entry: &(String, String)| {
            let driver = self.driver_named(&entry.0);
            driver.is_ok_and(|driver| driver.purges_only_the_folder(&path(entry)))
                && fits(&path(entry), &mut budget)
        };
        if !entries.iter().all(is_little) {
            return false;
        }
        let Ok(Some(_lock)) = FileLock::try_exclusive(&self.layout.lock("trash")) else { return false };
        entries.iter().all(|entry| {
            let driver = self.driver_named(&entry.0);
            driver.is_ok_and(|driver| purge(&self.catalog, &*driver, &path(entry)).is_ok())
        })
    }

    /// Has the trash emptied: by a worker if there is a way to start one, else now.
    pub(crate) fn empty_trash_later(&self) {
        self.empty_trash(FEW);
    }

    /// As [`Store::empty_trash_later`], when many removals gathered.
    pub(crate) fn empty_trash_of_many(&self) {
        self.empty_trash(MANY);
    }

    fn empty_trash(&self, little: usize) {
        if self.read_only.is_some() || is_held(&self.layout.lock("trash")).unwrap_or(true) {
            return;
        }
        let entries = list(&self.layout).unwrap_or_default();
        if entries.is_empty() || self.empty_little_trash(&entries, little) {
            return;
        }
        // What cannot be deleted now is tried again by the next removal and by `gc`; for the catalog it is gone.
        let _ = match &self.worker {
            Some(arguments) => vellum_sys::detach::spawn(arguments).is_ok(),
            None => work(self.layout.root()).is_ok(),
        };
    }
}
