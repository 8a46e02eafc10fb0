//! Opening a store that has a pool.

use super::device::{self, Found};
use super::{Facts, image, lock, mountpoint, remove};
use crate::catalog::{Catalog, Durability, schema};
use crate::faults::point;
use crate::layout::Layout;
use crate::{Code, Error, Result};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Makes sure that the store's pool is mounted and answers, and gives its root; `None` if there is no pool, and then nothing is left of one. The caller
/// holds the lock `store`.
pub(crate) fn ready(layout: &Layout) -> Result<Option<OwnedFd>> {
    let Some(facts) = Facts::of(layout)? else {
        if layout.pool().exists() {
            let _lock = lock(layout)?;
            remove::remains(layout)?;
        }
        return Ok(None);
    };
    if let Found::Sound(root) = device::look(layout, &facts) {
        return Ok(Some(root));
    }
    super::must_be_root("mount the store's pool")?;
    let _lock = lock(layout)?;
    match device::look(layout, &facts) {
        Found::Sound(root) => return Ok(Some(root)),
        Found::Nothing => {}
        Found::Failed(reason) => take_off_failed(layout, &reason)?,
        Found::Other => return Err(foreign(layout)),
    }
    if !image(layout).exists() {
        return Err(Error::new(
            Code::Damaged,
            "mount the store's pool",
            "its file is gone, and all layers with it",
        )
        .object(image(layout).display())
        .with_hint("put the file back, or begin anew: `vellum system reset`"));
    }
    device::mount(layout, facts.fs, facts.preallocated)?;
    match device::look(layout, &facts) {
        Found::Sound(root) => Ok(Some(root)),
        Found::Failed(reason) => Err(failed(layout, &reason)),
        Found::Nothing | Found::Other => Err(foreign(layout)),
    }
}

/// A file system that has shut down is made sound by mounting it anew, for which nobody may use it.
fn take_off_failed(layout: &Layout, reason: &str) -> Result<()> {
    device::unmount(layout, false).map_err(|e| {
        let hint = e.hint().map(str::to_owned);
        let told = failed(layout, reason);
        Error::caused(told.code(), "mount the store's pool anew, as its file system has failed", e)
            .object(mountpoint(layout).display())
            .with_hint(format!(
                "{}; then `vellum pool check`, or any other command, mounts it anew",
                hint.unwrap_or_default()
            ))
    })
}

/// The pool answers with errors only.
pub(super) fn failed(layout: &Layout, reason: &str) -> Error {
    let (code, why) = match super::status::host_is_full(layout) {
        true => (Code::Full, "the host's disk is full"),
        false => (Code::System, "the kernel's log (`dmesg`) says why"),
    };
    Error::new(code, "use the store's pool", format!("its file system has failed ({reason}); {why}"))
        .object(mountpoint(layout).display())
        .with_hint("make room on the host's disk if it is full, then `vellum pool check`: it mounts the pool anew; what was reported as done is in it")
}

fn foreign(layout: &Layout) -> Error {
    Error::new(Code::Damaged, "use the store's pool", "what is mounted there is not this store's pool")
        .object(mountpoint(layout).display())
        .with_hint("unmount it, or put back the pool's own file `image`")
}

/// Makes the catalog and the folder say the same of the pool: see the steps of creating and removing one.
pub(crate) fn agree(layout: &Layout, catalog: &Catalog, meta: &BTreeMap<String, String>) -> Result<()> {
    let noted = schema::has(meta, "incompat", schema::POOL);
    match (layout.has_pool(), noted) {
        (true, false) if crate::open::has_layers(layout)? => Err(Error::new(
            Code::Damaged,
            "open the store",
            "layers lie in its pool that the catalog was not made for",
        )
        .object(layout.root().display())
        .with_hint("`vellum check --repair` rebuilds the catalog from what lies in the pool")),
        (true, false) => note(catalog, true),
        (false, true) => Err(Error::new(
            Code::Damaged,
            "open the store",
            format!("its data lies in a pool, and {} is gone", layout.pool().join(super::FACTS).display()),
        )
        .with_hint("put the store's folder `pool` back, or begin anew: `vellum system reset`")),
        _ => Ok(()),
    }
}

/// Has the catalog say whether there is a pool, so that releases that know of none keep off.
pub(super) fn note(catalog: &Catalog, pool: bool) -> Result<()> {
    catalog.write(Durability::Full, |tx| schema::set_feature(tx, "incompat", schema::POOL, pool))?;
    point("store.pool.noted")
}
