//! The drivers this program has, and which of them a store uses.

use crate::layout::Layout;
use crate::{Code, DriverRow, Error, OpenOptions, Result};
use std::sync::Arc;
use vellum_driver::{Driver, DriverConfig, Factory, ProbeEnvironment, select};

/// All of them.
pub(crate) const FACTORIES: &[&dyn Factory] = &[
    &vellum_driver_composefs::FACTORY,
    &vellum_driver_overlay::FACTORY,
    &vellum_driver_btrfs::FACTORY,
    &vellum_driver_vfs::FACTORY,
];

/// The driver of this name or alias.
pub(crate) fn factory(name: &str) -> Result<&'static dyn Factory> {
    let known = FACTORIES.iter().find(|f| f.name() == name || f.aliases().contains(&name));
    known.copied().ok_or_else(|| {
        Error::new(Code::Invalid, format!("use the driver '{name}'"), "there is no driver of this name")
            .with_hint("`vellum driver ls` lists what there is")
    })
}

/// Opens a driver's home in the store.
pub(crate) fn open(layout: &Layout, name: &str, config: DriverConfig) -> Result<Arc<dyn Driver>> {
    let factory = factory(name)?;
    let home = layout.driver_home(factory.name());
    let driver = match factory.open(&home, config) {
        // Drivers try out what the file system can do, which takes a little room.
        Err(e) if e.kind == vellum_driver::ErrorKind::Full => {
            crate::reserve::release(layout.data());
            factory.open(&home, config)
        }
        result => result,
    }
    .map_err(Error::from)?;
    crate::layout::make_folder(&layout.layers().join(factory.name()))?;
    crate::layout::make_folder(&layout.trash().join(factory.name()))?;
    Ok(Arc::from(driver))
}

/// A driver's name, and why it is used.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// Which driver to use: the one asked for, else the one used before, else the best that works here. Nothing is probed unless
/// there is a choice to make: opening a store is cheap.
pub(crate) fn choose(
    layout: &Layout,
    rootless: bool,
    asked: Option<&str>,
    used_before: Option<&str>,
) -> Result<Choice> {
    match (asked, used_before) {
        (Some(asked), _) => {
            Ok(Choice { name: factory(asked)?.name().to_owned(), reason: "it was asked for".into() })
        }
        (None, Some(before)) => {
            Ok(Choice { name: before.to_owned(), reason: "it was used before in this store".into() })
        }
        (None, None) => {
            let environment = ProbeEnvironment { root: layout.data(), rootless };
            let selection = select(FACTORIES, &environment, None, None)?;
            Ok(Choice { name: selection.driver.clone(), reason: selection.reason })
        }
    }
}

/// What every driver says of the place.
pub(crate) fn probe_all(layout: &Layout, rootless: bool, open: Option<&dyn Driver>) -> Vec<DriverRow> {
    let environment = ProbeEnvironment { root: layout.data(), rootless };
    FACTORIES
        .iter()
        .map(|factory| {
            let selected = open.filter(|driver| driver.name() == factory.name());
            DriverRow {
                name: factory.name(),
                aliases: factory.aliases(),
                summary: factory.summary(),
                probe: factory.probe(&environment),
                selected: selected.is_some(),
                capabilities: selected.map(|driver| driver.capabilities().clone()),
            }
        })
        .collect()
}

/// As `probe_all`, in a place that need not be a store yet: what is missing of the root is made for the time of the probe.
pub(crate) fn probe_place(options: &OpenOptions) -> Result<Vec<DriverRow>> {
    let rootless = options.rootless.unwrap_or_else(crate::open::without_privileges);
    let missing = options
        .root
        .ancestors()
        .take_while(|p| !p.exists())
        .map(std::path::Path::to_owned)
        .collect::<Vec<_>>();
    std::fs::create_dir_all(&options.root).map_err(|e| Error::io("make the folder", &options.root, e))?;
    let rows = probe_all(&Layout::new(&options.root), rootless, None);
    for folder in missing {
        // Only those that are empty: another process may have begun a store meanwhile.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(rows)
}
