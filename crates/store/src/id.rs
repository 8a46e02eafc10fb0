//! A store's id, known before the store is opened.
//!
//! An ordinary user's store lives in a namespace that is kept for it, and has to be entered before anything is probed or mounted.
//! The namespace is the store's, not its path's: stores change places, are removed and made anew. So it is named by the id, which
//! `store.json` has; for a store that is yet to be made the id is drawn first:
//!
//! 1. Lock `locks/id`.
//! 2. `store.json`, else the file `id`, says the id.
//! 3. Neither does: one is drawn and published as `id`. Whoever makes the store takes it from there.
//!
//! The file stays, and says the id also when `store.json` is lost.

use crate::layout::Layout;
use crate::open::{Identity, is_store, without_privileges};
use crate::{Error, Result, Store, files};
use std::path::Path;
use vellum_sys::lock::FileLock;

const FILE: &str = "id";

impl Store {
    /// The id of the store at `root`. Where there is none, the one that it will have if `make`, else `None`. Needs no namespace
    /// and no privileges, and may be called before the process has threads.
    ///
    /// # Errors
    /// The file system's.
    pub fn id_at(root: &Path, make: bool) -> Result<Option<String>> {
        let layout =
            Layout::new(std::path::absolute(root).map_err(|e| Error::io("find the folder", root, e))?);
        if let Some(id) = recorded(&layout)? {
            return Ok(Some(id));
        }
        // A store without both is damaged, and whoever mends or removes it works inside, too.
        if !make && !is_store(&layout) {
            return Ok(None);
        }
        layout.make(without_privileges())?;
        let path = layout.lock("id");
        let _lock = FileLock::exclusive(&path).map_err(|e| Error::io("take the lock", path, e))?;
        if let Some(id) = recorded(&layout)? {
            return Ok(Some(id));
        }
        let id = draw()?;
        files::publish(layout.root(), FILE, id.as_bytes())?;
        Ok(Some(id))
    }
}

/// The id that a new store gets.
pub(crate) fn of_new(layout: &Layout) -> Result<String> {
    drawn(layout)?.map_or_else(draw, Ok)
}

fn recorded(layout: &Layout) -> Result<Option<String>> {
    // A damaged identity is told of by whoever opens the store.
    if let Ok(Some(identity)) = Identity::read(layout) {
        return Ok(Some(identity.uuid));
    }
    drawn(layout)
}

fn drawn(layout: &Layout) -> Result<Option<String>> {
    let id = files::read_if_there(&layout.root().join(FILE))?.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(id.filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())))
}

fn draw() -> Result<String> {
    vellum_sys::random::hex::<16>().map_err(|e| Error::io("draw a random number", "getrandom", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn plain_a_store_has_the_id_that_was_drawn_for_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        assert_eq!(Store::id_at(&root, false).unwrap(), None);
        assert!(!root.exists());
        let id = Store::id_at(&root, true).unwrap();
        assert_eq!(Store::id_at(&root, false).unwrap(), id);
        let options = OpenOptions {
            driver: Some("vfs".to_owned()),
            runtime: Some(place.path().join("run")),
            ..OpenOptions::new(&root)
        };
        let store = Store::open(&options).unwrap();
        assert_eq!(Some(store.info().unwrap().uuid), id);
        drop(store);
        // It moves with the store, and is known without the identity.
        let moved = place.path().join("moved");
        std::fs::rename(&root, &moved).unwrap();
        assert_eq!(Store::id_at(&moved, false).unwrap(), id);
        std::fs::remove_file(moved.join("store.json")).unwrap();
        assert_eq!(Store::id_at(&moved, false).unwrap(), id);
        Store::reset(&OpenOptions { root: moved.clone(), ..options }).unwrap();
        assert_ne!(Store::id_at(&moved, true).unwrap(), id);
    }
}
