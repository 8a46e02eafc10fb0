//! Opening and making a store.
//!
//! 1. Lock `locks/store` shared. (`reset` and the rebuilding of the catalog hold it exclusively.)
//! 2. A pool that the store has is mounted, and remains of one are taken away ([`crate::pool`]).
//! 3. No catalog: when `layers/` holds anything, the catalog was lost, and the store is refused as damaged (an empty catalog would make
//!    all of it garbage). Else the store is new: `store.json` is published, then the catalog is made with the same facts.
//! 4. The format is looked at: unknown `incompat` names refuse, unknown `ro_compat` names make it read-only.
//! 5. The driver is chosen and opened; the mounter too. Nothing is probed when the driver was used before.
//! 6. Recovery (see [`crate::recovery`]), unless read-only.
//!
//! `store.json` holds what must be known without the catalog: to empty the trash, to rebuild the catalog, to take a broken store off.

use crate::catalog::schema::{self, Access};
use crate::catalog::{self, Catalog};
use crate::drivers::Choice;
use crate::layout::Layout;
use crate::{Code, Error, OpenOptions, Result, Store, drivers, files, recovery};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use vellum_archive::XattrForm;
use vellum_driver::DriverConfig;
use vellum_mount::Mounter;
use vellum_sys::lock::FileLock;

/// What never changes in a store, as `store.json` and the catalog's `meta` have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uuid: String,
    pub(crate) xattrs: XattrForm,
    pub(crate) rootless: bool,
    /// The driver that new layers go to when none is asked for.
    pub(crate) driver: String,
    /// Drivers have the kernel verify what is read, where they can. Not there in stores of before that was written down, whose homes stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verity: Option<bool>,
}

impl Identity {
    pub(crate) const FILE: &'static str = "store.json";

    /// As `store.json` has it; `None` if there is none.
    pub(crate) fn read(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.root().join(Self::FILE);
        let Some(bytes) = files::read_if_there(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::caused(Code::Damaged, "read the store's identity", e).object(path.display()))
    }

    pub(crate) fn write(&self, layout: &Layout) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::caused(Code::System, "write the store's identity", e))?;
        files::publish(layout.root(), Self::FILE, &bytes)
    }

    pub(crate) fn config(&self) -> DriverConfig {
        DriverConfig { xattrs: self.xattrs, rootless: self.rootless, verity: self.verity.unwrap_or(true) }
    }

    /// The catalog's `meta` of a new store.
    pub(crate) fn rows(&self, layout: &Layout) -> Vec<(&'static str, String)> {
        let xattrs = match self.xattrs {
            XattrForm::Trusted => "trusted",
            XattrForm::User => "user",
        };
        let mut rows = vec![
            ("uuid", self.uuid.clone()),
            ("xattrs", xattrs.to_owned()),
            ("rootless", if self.rootless { "1" } else { "0" }.to_owned()),
            ("driver", self.driver.clone()),
            ("compat", String::new()),
            ("ro_compat", String::new()),
            ("incompat", if layout.has_pool() { schema::POOL } else { "" }.to_owned()),
        ];
        rows.extend(self.verity.map(|verity| ("verity", if verity { "1" } else { "0" }.to_owned())));
        rows
    }

    fn of_meta(meta: &BTreeMap<String, String>) -> Result<Self> {
        let get = |key: &str| {
            meta.get(key).cloned().ok_or_else(|| {
                Error::new(Code::Damaged, "open the store", format!("the catalog does not say its '{key}'"))
            })
        };
        Ok(Self {
            uuid: get("uuid")?,
            xattrs: if get("xattrs")? == "user" { XattrForm::User } else { XattrForm::Trusted },
            rootless: get("rootless")? == "1",
            driver: get("driver")?,
            verity: meta.get("verity").map(|value| value == "1"),
        })
    }

    fn new(layout: &Layout, options: &OpenOptions) -> Result<(Self, Choice)> {
        let rootless = options.rootless.unwrap_or_else(without_privileges);
        let choice = drivers::choose(layout, rootless, options.driver.as_deref(), None)?;
        let identity = Self {
            uuid: crate::id::of_new(layout)?,
            xattrs: if rootless { XattrForm::User } else { XattrForm::Trusted },
            rootless,
            driver: choice.name.clone(),
            verity: Some(options.verity),
        };
        Ok((identity, choice))
    }
}

/// Whether this process is not the host's root: another user, or root of a user namespace.
pub(crate) fn without_privileges() -> bool {
    let all = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    !all || !rustix::process::geteuid().is_root()
}

/// Whether a store lies at the root, sound or not.
pub(crate) fn is_store(layout: &Layout) -> bool {
    // Anybody may have a folder `pool`.
    let has_pool = || layout.pool().exists() && layout.lock("store").exists();
    layout.catalog().exists() || layout.root().join(Identity::FILE).exists() || has_pool()
}

/// Whether layers lie there.
pub(crate) fn has_layers(layout: &Layout) -> Result<bool> {
    for driver in files::entries(&layout.layers())? {
        if !files::entries(&layout.layers().join(driver.name))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the catalog of a new store, or of one whose making was interrupted. Gives the driver that was chosen for a new one.
fn make(layout: &Layout, options: &OpenOptions) -> Result<(Catalog, Option<Choice>)> {
    if has_layers(layout)? {
        return Err(Error::new(Code::Damaged, "open the store", "its catalog is lost")
            .object(layout.root().display())
            .with_hint("`vellum check --repair` rebuilds it from what lies on disk"));
    }
    let _placing = placing(layout)?;
    let (identity, choice) = match Identity::read(layout)? {
        Some(identity) => (identity, None),
        None => {
            let (identity, choice) = Identity::new(layout, options)?;
            identity.write(layout)?;
            crate::faults::point("store.make.identity")?;
            (identity, Some(choice))
        }
    };
    catalog::make_file(&layout.catalog())?;
    let catalog = Catalog::create(&layout.catalog(), &layout.lock("write"), &identity.rows(layout))?;
    let root = crate::layout::open_folder(layout.root())?;
    files::barrier(&root, layout.root())?;
    crate::faults::point("store.make.done")?;
    // Two processes may have made the store at once; the catalog was made by one of them.
    let made = catalog.read(schema::all).and_then(|meta| Identity::of_meta(&meta))?;
    if made != identity {
        made.write(layout)?;
        return Ok((catalog, None));
    }
    Ok((catalog, choice))
}

/// Held while a file is put in place that no row names yet: no sweep takes it away.
pub(crate) fn placing(layout: &Layout) -> Result<FileLock> {
    let path = layout.lock("sweep");
    FileLock::shared(&path).map_err(|e| Error::io("take the lock", path, e))
}

/// Opens the catalog, making the store if need be and allowed; then with the driver that was chosen for it.
fn open_catalog(layout: &Layout, options: &OpenOptions) -> Result<(Catalog, Option<Choice>)> {
    if catalog::exists(&layout.catalog()) {
        let opened = Catalog::open(&layout.catalog(), &layout.lock("write"), options.read_only)?;
        // A process that was killed while it made the store left a catalog without tables.
        let version: i32 =
            opened.read(|tx| Ok(tx.pragma_query_value(None, "user_version", |row| row.get(0))?))?;
        if version != 0 || options.read_only {
            return Ok((opened, None));
        }
    } else if options.read_only {
        return Err(missing(layout));
    }
    make(layout, options)
}

fn missing(layout: &Layout) -> Error {
    Error::new(Code::NotFound, "open the store", "there is none")
        .object(layout.root().display())
        .with_hint("`vellum load` makes one")
}

impl Store {
    /// Opens the store, or makes it. Takes a few milliseconds.
    ///
    /// # Errors
    /// There is none and it must not be made; its format is newer than this program; it is damaged; the driver does not
    /// work here.
    pub fn open(options: &OpenOptions) -> Result<Self> {
        let layout = Layout::new(absolute(&options.root)?);
        if !is_store(&layout) && (!options.create || options.read_only) && !has_layers(&layout)? {
            return Err(missing(&layout));
        }
        if options.read_only {
            layout.own_root()?;
        } else {
            layout.make(options.rootless.unwrap_or_else(without_privileges))?;
        }
        let lock_path = layout.lock("store");
        let lock = FileLock::shared(&lock_path).map_err(|e| Error::io("take the lock", &lock_path, e))?;
        let layout = layout.again();
        let pool = crate::pool::ready(&layout)?;
        if !options.read_only {
            layout.make_data()?;
        }
        let (catalog, chosen) = open_catalog(&layout, options)?;
        let (access, meta) = catalog.read(|tx| Ok((schema::access(tx)?, schema::all(tx)?)))?;
        let identity = Identity::of_meta(&meta)?;
        if access == Access::Full && !options.read_only {
            crate::pool::agree(&layout, &catalog, &meta)?;
        }
        let (catalog, read_only) = match (access, options.read_only) {
            (Access::Full, false) => (catalog, None),
            (Access::Full, true) => (catalog, Some("it was opened for reading only".to_owned())),
            (Access::ReadOnly(why), _) => {
                (Catalog::open(&layout.catalog(), &layout.lock("write"), true)?, Some(why))
            }
        };
        let choice = match chosen {
            Some(choice) => choice,
            None => drivers::choose(
                &layout,
                identity.rootless,
                options.driver.as_deref(),
                Some(&identity.driver),
            )?,
        };
        let driver = drivers::open(&layout, &choice.name, identity.config())?;
        let runtime = match &options.runtime {
            Some(runtime) => runtime.clone(),
            None => vellum_mount::runtime_folder(&identity.uuid).map_err(Error::from)?,
        };
        let mounter = Mounter::new(runtime.clone(), layout.mountpoints()).map_err(Error::from)?;
        let store = Self {
            layout,
            runtime,
            catalog,
            identity,
            drivers: Mutex::new(BTreeMap::from([(choice.name.clone(), Arc::clone(&driver))])),
            driver,
            driver_reason: choice.reason,
            mounter,
            worker: options.worker.clone(),
            floor: options.floor,
            workers: options.workers,
            read_only,
            _pool: pool,
            desk: OnceLock::new(),
            whole: Mutex::default(),
            _lock: lock,
        };
        if store.read_only.is_none() {
            crate::reserve::keep(&store.layout);
            match recovery::at_open(&store) {
                // What died is cleaned up by the next who has room for it.
                Err(e) if e.code() == Code::Full => {}
                result => result?,
            }
        }
        Ok(store)
    }
}

pub(crate) fn absolute(path: &std::path::Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find the folder", path, e))
}
