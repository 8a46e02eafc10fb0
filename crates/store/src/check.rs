//! Check: everything is compared with everything.
//!
//! 1. Flipped bits in the catalog's log, before SQLite opens it; SQLite's own check of the catalog, and of its references.
//! 2. What killed processes left is cleaned up: it is no finding.
//! 3. Every image: its configuration has its digest, and its layers are those the configuration names; the file beside it is right.
//! 4. Every layer (several at once): the driver has it, with the same kind and parent, and finds its structure sound;
//!    `layer.json` is right; of a layer that came as a tar, every file is compared with the manifest, and the recipe can be read.
//! 5. Every kept blob has its digest.
//!
//! Damaged layers of images are noted in the catalog, so that a load of the image mends them ([`crate::mend`]).
//! A finding about something that was removed meanwhile is dropped. Nothing is locked: a check may run for long.

use crate::catalog::layers::{Layer, Role, State};
use crate::catalog::{Durability, damage, flip, images, intents, layers};
use crate::layerfiles::{ImageFile, LayerFile};
use crate::open::Identity;
use crate::repair::unpack_helps;
use crate::{
    Code, Error, Finding, LayerOutcome, OpenOptions, Progress, Result, Store, files, findings, imageconfig,
    recovery,
};
use rusqlite::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use vellum_driver::{Ability, Kind};
use vellum_types::{ChainId, ImageId, LayerId};

/// A finding, with the layer it is about, for the repair.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) finding: Finding,
    pub(crate) layer: Option<Layer>,
    /// (driver, id)
    pub(crate) image: Option<(String, ImageId)>,
}

impl Found {
    fn new(id: &'static str, object: String, detail: impl Into<String>) -> Self {
        let finding = Finding {
            id,
            object,
            path: None,
            detail: detail.into(),
            repaired: None,
            not_repaired: None,
            hint: None,
        };
        Self { finding, layer: None, image: None }
    }

    pub(crate) fn layer(id: &'static str, layer: &Layer, detail: impl Into<String>) -> Self {
        let object = match layer.diff_id {
            Some(diff) => format!("layer {} ({diff})", layer.id),
            None => format!("layer {} of a {}", layer.id, layer.role.name()),
        };
        Self { layer: Some(layer.clone()), ..Self::new(id, object, detail) }
    }

    fn image(id: &'static str, driver: &str, image: &ImageId, detail: impl Into<String>) -> Self {
        let found = Self::new(id, format!("image {image}"), detail);
        Self { image: Some((driver.to_owned(), *image)), ..found }
    }

    pub(crate) fn at(mut self, path: impl std::fmt::Display) -> Self {
        self.finding.path = Some(path.to_string());
        self
    }
}

/// An error with its causes, in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        out.push_str(": ");
        out.push_str(&error.to_string());
        next = error.source();
    }
    out
}

impl Store {
    /// Opens the store and checks it. A catalog that cannot be read is a finding, and with `repair` it is rebuilt first
    /// ([`Store::rebuild`]). So is a flipped bit in the catalog's log; without `repair` it is the only one told, since opening the store would forget what follows it.
    ///
    /// # Errors
    /// As [`Store::open`], [`Store::rebuild`] and [`Store::check`].
    pub fn check_at(options: &OpenOptions, repair: bool, progress: &dyn Progress) -> Result<Vec<Finding>> {
        let layout = crate::layout::Layout::new(&options.root);
        let flip = flip::look(&layout.catalog(), &layout.lock("write"), repair)?;
        let flipped = flip.map(|flip| {
            let mut found = Found::new(findings::CATALOG_LOG, "catalog".into(), flip.to_string());
            found.finding.path = Some(layout.catalog().display().to_string() + "-wal");
            let how = if flip.is_known() { "it was flipped back" } else { "the catalog is made anew" };
            found.finding.repaired = repair.then(|| how.into());
            advise(&mut found);
            found.finding
        });
        if let (Some(finding), false) = (&flipped, repair) {
            // SQLite would forget what follows, and the next change would be written over it.
            return Ok(vec![finding.clone()]);
        }
        let with_log = |findings: Vec<Finding>| flipped.iter().cloned().chain(findings).collect();
        let opened = match flip {
            Some(flip) if !flip.is_known() => {
                Err(Error::new(Code::Damaged, "read the catalog's log", flip.to_string()))
            }
            _ => Self::open(options).and_then(|store| store.check(repair, progress)),
        };
        let damaged = match opened {
            Err(e) if e.code() == Code::Damaged => e,
            result => return result.map(with_log),
        };
        if !repair {
            let lost = !layout.catalog().exists();
            let id = if lost { findings::CATALOG_LOST } else { findings::CATALOG_UNSOUND };
            let mut found = Found::new(id, "catalog".into(), told(&damaged));
            advise(&mut found);
            return Ok(vec![found.finding]);
        }
        let mut findings = Self::rebuild(options)?;
        findings.extend(Self::open(options)?.check(true, progress)?);
        Ok(with_log(findings))
    }

    /// Compares everything in the store with everything, and with `repair` mends what can be mended. Layers are what the progress
    /// counts.
    ///
    /// # Errors
    /// The catalog cannot be read at all (then [`Store::rebuild`] helps); the file system's.
    pub fn check(&self, repair: bool, progress: &dyn Progress) -> Result<Vec<Finding>> {
        let unsound = self.catalog.quick_check()?;
        if repair && !unsound.is_empty() {
            // It can be opened and is wrong inside: nothing it says is used to repair anything else.
            return Err(Error::new(Code::Damaged, "check the catalog", unsound.join("; "))
                .with_hint("`vellum check --repair` rebuilds it from what lies on disk"));
        }
        let mut found: Vec<Found> = (unsound.into_iter())
            .map(|line| Found::new(findings::CATALOG_UNSOUND, "catalog".into(), line))
            .collect();
        if self.read_only.is_none() {
            let owners = self.catalog.read(intents::owners)?;
            recovery::take_over_dead(self, &owners)?;
            self.settle_fresh()?;
        }
        found.extend(self.check_identity());
        found.extend(self.check_images()?);
        found.extend(self.check_layers(progress)?);
        found.extend(self.check_blobs()?);
        self.drop_removed(&mut found)?;
        self.note_found(&found)?;
        if repair && self.read_only.is_none() {
            self.repair(&mut found)?;
        } else {
            found.iter_mut().for_each(advise);
        }
        Ok(found.into_iter().map(|found| found.finding).collect())
    }

    /// `store.json` is what a store is known by when its catalog is lost.
    fn check_identity(&self) -> Option<Found> {
        let detail = match Identity::read(&self.layout) {
            Ok(Some(identity)) if identity == self.identity => return None,
            Ok(Some(_)) => "it does not say what the catalog says".to_owned(),
            Ok(None) => "the file is missing".to_owned(),
            Err(e) => told(&e),
        };
        let path = self.layout.root().join(Identity::FILE);
        Some(Found::new(findings::IDENTITY, "store".into(), detail).at(path.display()))
    }

    fn check_images(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for (driver, id) in self.catalog.read(images::every)? {
            loop {
                // An image that was removed, or removed and loaded again, while it was looked at is looked at again.
                let added = |tx: &Transaction<'_>| images::added(tx, &driver, &id);
                let before = self.catalog.read(added)?;
                let these = if before.is_some() { self.check_image(&driver, &id)? } else { Vec::new() };
                if these.is_empty() || self.catalog.read(added)? == before {
                    found.extend(these);
                    break;
                }
            }
        }
        Ok(found)
    }

    fn check_image(&self, driver: &str, id: &ImageId) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        match files::read_if_there(&self.layout.configs().join(id.digest().hex()))? {
            None => found.push(Found::image(findings::CONFIG_LOST, driver, id, "its file is missing")),
            Some(bytes) if ImageId::of(&bytes) != *id => {
                let detail = format!("its bytes have the digest {}", ImageId::of(&bytes));
                found.push(Found::image(findings::CONFIG_WRONG, driver, id, detail));
            }
            Some(bytes) => found.extend(self.check_image_layers(driver, id, &bytes)?),
        }
        found.extend(self.check_image_file(driver, id)?);
        Ok(found)
    }

    fn check_image_layers(&self, driver: &str, id: &ImageId, config: &[u8]) -> Result<Option<Found>> {
        let layers = self.catalog.read(|tx| layers::of_image(tx, driver, &id.to_string()))?;
        let have: Vec<ChainId> = layers.iter().filter_map(|layer| layer.chain_id).collect();
        let want = match imageconfig::read(config) {
            Ok(facts) => ChainId::chain(&facts.diff_ids),
            Err(e) => return Ok(Some(Found::image(findings::IMAGE_LAYERS, driver, id, told(&e)))),
        };
        let ordered = layers.windows(2).all(|pair| pair[1].parent == Some(pair[0].id));
        let sound = have == want && ordered && layers.iter().all(|layer| layer.state == State::Ready);
        Ok((!sound).then(|| {
            let detail = format!(
                "the catalog has {} layers, the configuration {}, or in another order",
                have.len(),
                want.len()
            );
            Found::image(findings::IMAGE_LAYERS, driver, id, detail)
        }))
    }

    /// The file beside an image. One that is only out of date was left by a kill between writing it and the commit.
    fn check_image_file(&self, driver: &str, id: &ImageId) -> Result<Option<Found>> {
        let folder = self.layout.images().join(driver);
        let stale = match ImageFile::read(&folder, id) {
            Err(e) => return Ok(Some(Found::image(findings::IMAGE_RECORD, driver, id, told(&e)))),
            Ok(None) => {
                return Ok(Some(Found::image(findings::IMAGE_RECORD, driver, id, "its file is missing")));
            }
            Ok(Some(file)) => file != self.catalog.read(|tx| ImageFile::of(tx, driver, id))?,
        };
        if stale && self.read_only.is_none() {
            let _placing = crate::open::placing(&self.layout)?;
            self.catalog.write(Durability::Normal, |tx| self.follow_image(tx, driver, id))?;
        }
        Ok(None)
    }

    fn check_layers(&self, progress: &dyn Progress) -> Result<Vec<Found>> {
        let rows: Vec<Layer> =
            self.catalog.read(layers::all)?.into_iter().filter(|layer| layer.state == State::Ready).collect();
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.worker_count().min(rows.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(layer) = rows.get(index) else { return };
                        progress.layer_started(index, &format!("layer {}", layer.id), None);
                        let result = match self.check_layer(layer) {
                            // Removed while it was looked at.
                            Err(_) if !self.is_ready(layer.id) => Ok(Vec::new()),
                            result => result,
                        };
                        progress.layer_done(index, LayerOutcome::Shared);
                        match (result, found.lock(), failed.lock()) {
                            (Ok(more), Ok(mut found), _) => found.extend(more),
                            (Err(e), _, Ok(mut failed)) => *failed = Some(e),
                            _ => return,
                        }
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_default() {
            return Err(error);
        }
        let mut found: Vec<Found> = found.into_inner().unwrap_or_default();
        found.sort_by_key(|found| found.layer.as_ref().map(|layer| layer.id));
        Ok(found)
    }

    fn is_ready(&self, layer: LayerId) -> bool {
        let row = self.catalog.read(|tx| layers::get(tx, layer));
        !matches!(row, Ok(row) if row.as_ref().is_none_or(|row| row.state != State::Ready))
    }

    fn check_layer(&self, layer: &Layer) -> Result<Vec<Found>> {
        let driver = self.driver_named(&layer.driver)?;
        // While a layer is replaced it is not there for a moment.
        let _reading = self.reading_layers()?;
        let mut found = Vec::new();
        match driver.stat(layer.id) {
            Ok(None) => {
                found.push(Found::layer(findings::LAYER_LOST, layer, "the driver does not have it"));
                return Ok(found);
            }
            Err(e) if e.kind == vellum_driver::ErrorKind::Damaged => {
                found.push(Found::layer(findings::LAYER_STRUCTURE, layer, told(&e)));
                return Ok(found);
            }
            Err(e) => return Err(e.into()),
            Ok(Some(info)) => {
                let kind = match layer.role {
                    Role::Image => Some(Kind::Committed),
                    Role::Container | Role::Save => Some(Kind::Active),
                    Role::Snapshot => None,
                };
                if kind.is_some_and(|kind| kind != info.kind) || info.parent != layer.parent {
                    let detail = format!(
                        "the driver has it as {:?} on {:?}, the catalog as {} on {:?}",
                        info.kind,
                        info.parent,
                        layer.role.name(),
                        layer.parent
                    );
                    found.push(Found::layer(findings::LAYER_RELATION, layer, detail));
                }
            }
        }
        for sentence in driver.check(layer.id)? {
            found.push(Found::layer(findings::LAYER_STRUCTURE, layer, sentence));
        }
        found.extend(self.check_layer_file(layer)?);
        if layer.role == Role::Image || layer.recipe.is_some() {
            found.extend(self.check_content(layer)?);
        }
        Ok(found)
    }

    fn check_layer_file(&self, layer: &Layer) -> Result<Option<Found>> {
        let folder = self.layout.layer(&layer.driver, layer.id);
        let bad = |detail: String| {
            Some(
                Found::layer(findings::LAYER_RECORD, layer, detail)
                    .at(folder.join(LayerFile::NAME).display()),
            )
        };
        Ok(match LayerFile::read(&folder) {
            Err(e) => bad(told(&e)),
            Ok(None) => bad("the file is missing".into()),
            Ok(Some(file)) => {
                let want = self.catalog.read(|tx| LayerFile::of(tx, layer))?;
                let driver = self.driver_named(&layer.driver)?;
                let once = driver.capabilities().has(Ability::StoresFilesOnce);
                let adopted = LayerFile { adopted: want.adopted.clone(), ..file.clone() };
                if file.same_identity(&want, once) {
                    None
                } else if file.id == layer.id
                    && (layer.role == Role::Snapshot || adopted.same_identity(&want, once))
                {
                    // A snapshot's labels and its kind change, and an image's layer is adopted and given up; the file follows: a kill in
                    // between leaves the old one.
                    if self.read_only.is_none() {
                        want.write(&folder)?;
                    }
                    None
                } else {
                    bad("it does not say what the catalog says".into())
                }
            }
        })
    }

    fn check_blobs(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for layer in self.catalog.read(layers::all)? {
            let Some(digest) = layer.blob.as_ref().and_then(|blob| blob.digest) else { continue };
            if layer.state != State::Ready {
                continue;
            }
            let path = self.layout.blobs().join(digest.hex());
            match crate::verify::digest_of(&path, digest.algorithm()) {
                Err(error) => {
                    let detail = format!("its blob cannot be read: {}", told(&error));
                    found.push(Found::layer(findings::BLOB_WRONG, &layer, detail).at(path.display()));
                }
                Ok(None) => found
                    .push(Found::layer(findings::BLOB_LOST, &layer, "its blob is gone").at(path.display())),
                Ok(Some(now)) if now != digest => {
                    let detail = format!("its blob has the digest {now}");
                    found.push(Found::layer(findings::BLOB_WRONG, &layer, detail).at(path.display()));
                }
                Ok(Some(_)) => {}
            }
        }
        Ok(found)
    }

    /// Notes which layers are damaged, so that a load mends them, and which are sound again.
    fn note_found(&self, found: &[Found]) -> Result<()> {
        let mut bad = BTreeMap::new();
        for one in found {
            if let Some(layer) = &one.layer
                && layer.role == Role::Image
                && unpack_helps(one.finding.id)
            {
                bad.entry(layer.id).or_insert_with(|| match &one.finding.path {
                    Some(path) => format!("{path}: {}", one.finding.detail),
                    None => one.finding.detail.clone(),
                });
            }
        }
        let known: BTreeSet<LayerId> = (self.catalog.read(damage::all)?.into_iter())
            .filter(|damage| damage.successor.is_none())
            .map(|damage| damage.layer)
            .collect();
        let sound: Vec<LayerId> = known.iter().filter(|id| !bad.contains_key(id)).copied().collect();
        if self.read_only.is_none() {
            // Before it is noted: a load may begin to mend at once.
            bad.keys().try_for_each(|id| self.distrust(*id))?;
        }
        bad.retain(|id, _| !known.contains(id));
        if self.read_only.is_some() || (bad.is_empty() && sound.is_empty()) {
            return Ok(());
        }
        let noted = self.catalog.write(Durability::Full, |tx| {
            sound.iter().try_for_each(|id| damage::clear(tx, *id))?;
            bad.iter().try_for_each(|(id, detail)| match layers::get(tx, *id)? {
                Some(_) => damage::note(tx, *id, detail),
                None => Ok(()),
            })
        });
        match noted {
            // What was found is told all the same.
            Err(e) if e.code() == Code::Full => Ok(()),
            Ok(()) => crate::faults::point("store.check.noted"),
            Err(e) => Err(e),
        }
    }

    /// What was removed or changed while it was looked at is not wrong.
    fn drop_removed(&self, found: &mut Vec<Found>) -> Result<()> {
        self.catalog.read(|tx| {
            let mut keep = Vec::with_capacity(found.len());
            for one in found.iter() {
                let layer = match &one.layer {
                    Some(layer) => layers::get(tx, layer.id)?
                        .is_some_and(|now| now.state == State::Ready && now.parent == layer.parent),
                    None => true,
                };
                let image = match &one.image {
                    Some((driver, id)) => images::exists(tx, driver, id)?,
                    None => true,
                };
                keep.push(layer && image);
            }
            let mut keep = keep.into_iter();
            found.retain(|_| keep.next().unwrap_or(true));
            Ok(())
        })
    }
}

/// What the user can do about a finding that was not repaired.
pub(crate) fn advise(found: &mut Found) {
    let Finding { repaired, not_repaired, hint, .. } = &found.finding;
    // Who failed to repair it has said what there is to do, if there is something.
    if repaired.is_some() || not_repaired.is_some() || hint.is_some() {
        return;
    }
    let kept = found.layer.as_ref().is_some_and(|layer| layer.blob.is_some());
    let repairable = matches!(
        found.finding.id,
        findings::IDENTITY
            | findings::LAYER_RECORD
            | findings::IMAGE_RECORD
            | findings::BLOB_LOST
            | findings::BLOB_WRONG
            | findings::CATALOG_UNSOUND
            | findings::CATALOG_LOST
            | findings::CATALOG_LOG
    );
    let hint = match &found.layer {
        _ if repairable => "`vellum check --repair` mends it",
        Some(_) if kept => "`vellum check --repair` unpacks it again from its kept blob",
        Some(layer) if layer.role == Role::Snapshot && layer.recipe.is_some() => {
            "have the engine that holds it remove the images of this layer, and pull or load them again"
        }
        Some(layer) if layer.role != Role::Image => "there is no second copy of a container's own files",
        Some(_) => crate::mend::HINT,
        None => "load the image again",
    };
    found.finding.hint = Some(hint.to_owned());
}
