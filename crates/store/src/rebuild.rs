//! The catalog, made anew from what lies on disk.
//!
//! 1. Lock `store` alone. The damaged file is put aside as `catalog.db.damaged`, with its log.
//! 2. A new catalog is made beside it, as `catalog.db.new`, with the identity of `store.json`.
//! 3. One transaction fills it: layers from `layers/<driver>/*/layer.json`, those that the driver has; images from
//!    `images/<driver>/*.json`, those whose configuration has its digest and whose layers are all there; containers, save points and front
//!    ends' snapshots from their layers' files. The counter of ids goes above all that were seen.
//! 4. The new catalog takes the old one's place by a rename; a kill before leaves the damaged store, one after a sound one.
//!
//! What a file beside the catalog says may be a moment ahead of it (names), and a container that was being removed may come back.

use crate::catalog::{Catalog, Durability, containers, images, layers, schema, snapshots};
use crate::faults::point;
use crate::layerfiles::{ImageFile, LayerFile};
use crate::layout::Layout;
use crate::open::Identity;
use crate::{Code, Error, Finding, OpenOptions, Result, Store, drivers, files, findings, imageconfig};
use rusqlite::Transaction;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vellum_types::{ChainId, ContainerId, ImageId, LayerId};

/// What lies on disk.
#[derive(Default)]
struct Remains {
    /// By id, with the driver.
    layers: BTreeMap<LayerId, (String, LayerFile)>,
    images: Vec<(String, ImageFile, Vec<u8>)>,
    highest: u32,
    findings: Vec<Finding>,
}

impl Store {
    /// Makes the catalog anew from what lies on disk, for a store that cannot be opened because its catalog is damaged or
    /// lost. The old one is kept beside it as `catalog.db.damaged`.
    ///
    /// # Errors
    /// [`Code::NotFound`]: there is no store; [`Code::InUse`]: another process has it open; [`Code::Damaged`]: `store.json`
    /// is lost too; the file system's.
    pub fn rebuild(options: &OpenOptions) -> Result<Vec<Finding>> {
        let layout = Layout::new(
            std::path::absolute(&options.root).map_err(|e| Error::io("find the folder", &options.root, e))?,
        );
        let identity = Identity::read(&layout)?.ok_or_else(|| {
            Error::new(Code::NotFound, "rebuild the catalog", "there is no store, or its store.json is lost")
                .object(layout.root().display())
        })?;
        layout.make(identity.rootless)?;
        let _lock = crate::locks::whole_store(&layout, "rebuild the catalog of the store")?;
        let layout = layout.again();
        let _pool = crate::pool::ready(&layout)?;
        layout.make_data()?;
        let lost = !layout.catalog().exists();
        let mut remains = gather(&layout, &identity)?;
        let new = layout.root().join("catalog.db.new");
        remove_catalog(&new)?;
        crate::catalog::make_file(&new)?;
        {
            let catalog = Catalog::create(&new, &layout.lock("write"), &identity.rows(&layout))?;
            catalog.write(Durability::Full, |tx| remains.fill(tx))?;
            catalog.settle()?;
        }
        point("store.rebuild.filled")?;
        put_in_place(&layout, &new)?;
        point("store.rebuild.done")?;
        let (id, detail) = match lost {
            true => (findings::CATALOG_LOST, "it was missing"),
            false => (findings::CATALOG_UNSOUND, "it could not be read"),
        };
        let first = Finding {
            id,
            object: "catalog".into(),
            path: Some(layout.catalog().display().to_string()),
            detail: detail.into(),
            repaired: Some(format!(
                "rebuilt from what lies on disk: {} layers, {} images",
                remains.layers.len(),
                remains.images.len()
            )),
            not_repaired: None,
            hint: None,
        };
        Ok(std::iter::once(first).chain(remains.findings).collect())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove_catalog(path: &Path) -> Result<()> {
    ["", "-wal", "-shm"].iter().try_for_each(|suffix| files::remove_any(&with_suffix(path, suffix)))
}

/// The log goes first and comes last: a catalog never meets the log of another.
fn put_in_place(layout: &Layout, new: &Path) -> Result<()> {
    let old = layout.catalog();
    let aside = with_suffix(&old, ".damaged");
    remove_catalog(&aside)?;
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(&old, suffix), with_suffix(&aside, suffix));
        match std::fs::rename(&from, to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("put aside", from, e));
            }
            _ => {}
        }
    }
    point("store.rebuild.aside")?;
    remove_catalog_log(new)?;
    std::fs::rename(new, &old).map_err(|e| Error::io("put in place", &old, e))?;
    let root = crate::layout::open_folder(layout.root())?;
    files::barrier(&root, layout.root())
}

fn remove_catalog_log(path: &Path) -> Result<()> {
    ["-wal", "-shm"].iter().try_for_each(|suffix| files::remove_any(&with_suffix(path, suffix)))
}

fn gather(layout: &Layout, identity: &Identity) -> Result<Remains> {
    let mut remains = Remains::default();
    for entry in files::entries(&layout.layers())? {
        let Ok(factory) = drivers::factory(&entry.name) else { continue };
        let driver = drivers::open(layout, factory.name(), identity.config())?;
        driver.walk(&mut |id, info| {
            remains.highest = remains.highest.max(id.get());
            let folder = layout.layer(factory.name(), id);
            let mut file = match LayerFile::read(&folder) {
                Ok(Some(file)) if info.is_ok() && file.id == id => file,
                Ok(None) => return Ok(()),
                _ => {
                    remains.dropped(format!("layer {id}"), "its record or the layer itself is damaged");
                    return Ok(());
                }
            };
            // An image's layer gets its record only when it is joined; one that the driver calls active was not.
            if driver.capabilities().has(vellum_driver::Ability::StoresFilesOnce) {
                file.usage = driver.usage(id).unwrap_or(file.usage);
            }
            let committed = info.is_ok_and(|info| info.kind == vellum_driver::Kind::Committed);
            if committed || file.role != layers::Role::Image {
                remains.layers.insert(id, (factory.name().to_owned(), file));
            }
            Ok(())
        })?;
        for record in files::entries(&layout.images().join(factory.name()))? {
            gather_image(layout, factory.name(), &record.name, &mut remains);
        }
    }
    remains.drop_incomplete();
    Ok(remains)
}

fn gather_image(layout: &Layout, driver: &str, name: &str, remains: &mut Remains) {
    let Some(id) = name.strip_suffix(".json").and_then(|hex| format!("sha256:{hex}").parse::<ImageId>().ok())
    else {
        return;
    };
    let record = ImageFile::read(&layout.images().join(driver), &id).ok().flatten();
    let config = files::read_if_there(&layout.configs().join(id.digest().hex())).ok().flatten();
    match (record, config) {
        (Some(record), Some(config)) if ImageId::of(&config) == id => {
            remains.images.push((driver.to_owned(), record, config));
        }
        _ => remains.dropped(format!("image {id}"), "its record or its configuration is damaged"),
    }
}

impl Remains {
    fn dropped(&mut self, object: String, detail: &str) {
        self.findings.push(Finding {
            id: findings::CATALOG_DROPPED,
            object,
            path: None,
            detail: detail.to_owned(),
            repaired: None,
            not_repaired: None,
            hint: Some("load the image again; what is left of it is taken by `vellum gc`".to_owned()),
        });
    }

    /// Layers whose parent is not there cannot be used; of two layers of one chain ID, one container or one snapshot, the later counts.
    fn drop_incomplete(&mut self) {
        loop {
            let gone: Vec<LayerId> = (self.layers.iter())
                .filter(|(_, (driver, file))| {
                    file.parent
                        .is_some_and(|parent| self.layers.get(&parent).is_none_or(|(of, _)| of != driver))
                })
                .map(|(id, _)| *id)
                .collect();
            if gone.is_empty() {
                break;
            }
            for id in gone {
                self.layers.remove(&id);
                self.dropped(format!("layer {id}"), "the layer below it is lost");
            }
        }
        let mut of_container: BTreeMap<ContainerId, LayerId> = BTreeMap::new();
        let mut of_chain: BTreeMap<(String, ChainId), LayerId> = BTreeMap::new();
        // Docker's layer has another one from when an archive was unpacked for it.
        let mut of_snapshot: BTreeMap<(&str, &str), LayerId> = BTreeMap::new();
        let mut doubles = Vec::new();
        for (id, (driver, file)) in &self.layers {
            if let Some(container) = file.container.as_ref().filter(|c| c.save_point.is_none()) {
                doubles.extend(of_container.insert(container.id, *id));
            }
            if let Some(whose) = &file.snapshot {
                doubles.extend(of_snapshot.insert((&whose.namespace, &whose.key), *id));
            }
            if let Some(chain) = file.chain_id {
                doubles.extend(of_chain.insert((driver.clone(), chain), *id));
            }
        }
        for id in doubles {
            self.layers.remove(&id);
        }
    }

    fn fill(&mut self, tx: &Transaction<'_>) -> Result<()> {
        schema::set(tx, "last_layer", &self.highest.to_string())?;
        for (id, (driver, file)) in &self.layers {
            layers::restore(tx, *id, driver, file)?;
        }
        for (id, (_, file)) in &self.layers {
            layers::set_parent(tx, *id, file.parent)?;
        }
        self.fill_images(tx)?;
        for (id, (_, file)) in &self.layers {
            let Some(whose) = file.container.as_ref().filter(|whose| whose.save_point.is_none()) else {
                continue;
            };
            containers::add(tx, &whose.id, whose.name.as_ref(), &whose.image, *id, whose.created)?;
        }
        for (id, (_, file)) in &self.layers {
            if let Some((whose, name)) =
                file.container.as_ref().and_then(|c| c.save_point.as_ref().map(|n| (c, n)))
                && containers::get_bare(tx, &whose.id)?
            {
                containers::add_save_point(tx, &whose.id, name, *id, file.created)?;
            }
            for whose in file.snapshot.iter().chain(&file.adopted) {
                snapshots::add(
                    tx,
                    &snapshots::NewSnapshot {
                        namespace: &whose.namespace,
                        key: &whose.key,
                        kind: whose.kind,
                        parent: whose.parent.as_deref(),
                        layer: *id,
                        labels: &whose.labels,
                        created: whose.created,
                    },
                )?;
            }
        }
        Ok(())
    }

    fn fill_images(&mut self, tx: &Transaction<'_>) -> Result<()> {
        let by_chain: BTreeMap<(&str, ChainId), LayerId> = (self.layers.iter())
            .filter_map(|(id, (driver, file))| Some(((driver.as_str(), file.chain_id?), *id)))
            .collect();
        let mut incomplete = Vec::new();
        self.images.sort_by_key(|(_, record, _)| record.added);
        for (driver, record, config) in &self.images {
            let facts = imageconfig::read(config)?;
            let layers: Vec<LayerId> = ChainId::chain(&facts.diff_ids)
                .into_iter()
                .filter_map(|chain| by_chain.get(&(driver.as_str(), chain)).copied())
                .collect();
            if layers.len() != facts.diff_ids.len() {
                incomplete.push(record.id);
                continue;
            }
            images::add(
                tx,
                &images::NewImage {
                    driver,
                    id: record.id,
                    created: facts.created,
                    platform: facts.platform.as_ref(),
                    manifest: record.manifest.as_deref().map(str::as_bytes),
                    added: record.added,
                    layers: &layers,
                },
            )?;
            for name in &record.names {
                images::tag(tx, driver, &record.id, name)?;
            }
        }
        for id in incomplete {
            self.images.retain(|(_, record, _)| record.id != id);
            self.dropped(format!("image {id}"), "one of its layers is lost");
        }
        Ok(())
    }
}
