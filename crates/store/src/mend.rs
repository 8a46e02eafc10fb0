//! Damaged layers of images: noted when they are found, and replaced by sound ones.
//!
//! **Noted** in the catalog, durably, by whoever finds it: `check`, a `save` whose tar has another digest, a load that looks for a layer and does
//! not see it on disk. A load of the image then unpacks the layer again, and `check --repair` does where the blob is kept. Until
//! then no container is made of it.
//!
//! **Replaced**, under its own id, because others lie on it:
//! 1. The sound layer is unpacked beside it, under an id of its own, with an intent; its digests are verified, and it is joined to the
//!    same parent. Its `layer.json` already says whose place it takes. Barrier. A kill until here leaves an intent.
//! 2. Lock `layers` alone: nobody mounts, reads or joins layers now. Refused while anything is mounted that the layer is part of, because
//!    the kernel would go on with the old files.
//! 3. One durable transaction decides it: the note names the successor.
//! 4. The damaged layer goes to the trash, the sound one takes its id, then the folder beside it likewise; barrier.
//! 5. One durable transaction records what is there now, and forgets the note and the intent.
//!
//! A kill between 3 and 5 is finished by the next process that opens the store, or that collects or checks: each step of 4 sees whether it was
//! done. When something was mounted meanwhile and the damaged layer is still in its place, the decision is taken back instead.

use crate::catalog::layers::{Layer, State};
use crate::catalog::{Durability, containers, damage, intents, layers};
use crate::containers::layer_file;
use crate::faults::point;
use crate::layerfiles::{BlobFile, LayerFile};
use crate::load::Filled;
use crate::locks::Owner;
use crate::{BlobFacts, Code, Error, Result, Store, files, locks};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use vellum_sys::lock::FileLock;
use vellum_types::{ContainerId, LayerId};

/// What to do about a damaged layer.
pub(crate) const HINT: &str =
    "load the image again, which unpacks it anew; `vellum check --repair` does too where the blobs are kept";

/// How long a replacement waits for those who read layers.
const PATIENCE: Duration = Duration::from_secs(10);

/// A sound layer that is unpacked, verified and joined.
#[derive(Debug)]
pub(crate) struct Sound<'a> {
    pub(crate) id: LayerId,
    pub(crate) filled: &'a Filled,
    /// The blob it came in, when that is kept.
    pub(crate) blob: Option<&'a BlobFacts>,
    /// Of the root, opened before the first write.
    pub(crate) barrier: &'a OwnedFd,
}

impl Store {
    /// What is known to be damaged below a container, in sentences.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the catalog's.
    pub fn damage_below(&self, container: &ContainerId) -> Result<Vec<String>> {
        let known = self.catalog.read(|tx| {
            let row = containers::get(tx, container)?;
            damage::below(tx, row.parent)
        })?;
        Ok(known.into_iter().map(|one| format!("layer {} is damaged: {}", one.layer, one.detail)).collect())
    }

    /// Held while layers of images are mounted, read or joined: none is replaced meanwhile.
    pub(crate) fn reading_layers(&self) -> Result<FileLock> {
        let path = self.layout.lock("layers");
        FileLock::shared(&path).map_err(|e| Error::io("take the lock", path, e))
    }

    /// What a damaged layer shares with others is used by no new layer without having been compared.
    pub(crate) fn distrust(&self, layer: LayerId) -> Result<()> {
        match self.catalog.read(|tx| layers::get(tx, layer))? {
            Some(row) => Ok(self.driver_named(&row.driver)?.distrust(layer)?),
            None => Ok(()),
        }
    }

    /// Notes a damaged layer. What cannot be noted (the store is read-only, the disk full) is found again by the next check.
    pub(crate) fn note_damage(&self, layer: LayerId, detail: &str) {
        if self.read_only.is_none() {
            let _ = self.distrust(layer);
            let _ = self.catalog.write(Durability::Full, |tx| match layers::get(tx, layer)? {
                Some(row) if row.state == State::Ready => damage::note(tx, layer, detail),
                _ => Ok(()),
            });
        }
    }

    /// Alone with the layers, if nobody is at them for longer than moments.
    pub(crate) fn alone_with_layers_for_now(&self) -> Result<Option<FileLock>> {
        let path = self.layout.lock("layers");
        for _ in 0..100 {
            if let Some(lock) =
                FileLock::try_exclusive(&path).map_err(|e| Error::io("take the lock", &path, e))?
            {
                return Ok(Some(lock));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }

    /// Alone with the layers, or an error after a while.
    fn alone_with_layers(&self, layer: LayerId) -> Result<FileLock> {
        let path = self.layout.lock("layers");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) =
                FileLock::try_exclusive(&path).map_err(|e| Error::io("take the lock", &path, e))?
            {
                return Ok(lock);
            }
            if Instant::now() > until {
                return Err(Error::new(
                    Code::InUse,
                    format!("replace the damaged layer {layer}"),
                    "another operation reads the store's layers",
                )
                .with_hint("try again when it has ended"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Refuses when anything is mounted that the layer is part of, and says who.
    pub(crate) fn refuse_in_use(&self, layer: LayerId) -> Result<()> {
        let users = self.mounted_with(layer)?;
        if users.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Code::InUse,
            format!("replace the damaged layer {layer}"),
            format!("it is part of what is mounted: {}", users.join(", ")),
        )
        .with_hint("unmount them first (`vellum umount --all NAME`)"))
    }

    /// Who is mounted and has this layer in the chain.
    fn mounted_with(&self, id: LayerId) -> Result<Vec<String>> {
        let mounted: BTreeSet<LayerId> =
            self.mounter.list().map_err(Error::from)?.into_iter().map(|record| record.layer).collect();
        self.catalog.read(|tx| {
            let mut users = Vec::new();
            for top in mounted {
                let mut is_below = false;
                layers::descend(tx, Some(top), &mut |layer, _| {
                    is_below |= layer == id;
                    Ok(!is_below)
                })?;
                if is_below {
                    users.push(user_name(tx, top)?);
                }
            }
            Ok(users)
        })
    }

    /// Puts a sound layer in the place of a damaged one. False when that one was mended, or removed, meanwhile: the
    /// sound one is then taken off.
    pub(crate) fn replace_layer(&self, owner: &Owner, damaged: &Layer, sound: &Sound<'_>) -> Result<bool> {
        let mut file = layer_file(damaged.id, damaged.role, damaged.parent, damaged.created, None);
        (file.chain_id, file.diff_id) = (damaged.chain_id, damaged.diff_id);
        (file.usage, file.tar_size) = (sound.filled.finished.usage, sound.filled.tar_size);
        file.recipe = Some(sound.filled.recipe);
        file.blob = BlobFile::of(sound.blob.or(damaged.blob.as_ref()));
        file.write(&self.layout.layer(&damaged.driver, sound.id))?;
        point("store.mend.written")?;
        files::barrier(sound.barrier, self.layout.data())?;
        point("store.mend.synced")?;
        let alone = self.alone_with_layers(damaged.id)?;
        self.refuse_in_use(damaged.id)?;
        let decided = self.catalog.write(Durability::Full, |tx| {
            let wanted = damage::of(tx, damaged.id)?.is_some_and(|note| note.successor.is_none())
                && layers::get(tx, damaged.id)?.is_some_and(|row| row.state == State::Ready);
            if wanted {
                damage::set_successor(tx, damaged.id, Some(sound.id))?;
            } else {
                intents::abandon(tx, sound.id, owner.id)?;
            }
            Ok(wanted)
        })?;
        point("store.mend.decided")?;
        if decided {
            self.finish_replacement(damaged.id, sound.id)?;
        }
        drop(alone);
        if !decided && let Some(unused) = self.catalog.read(|tx| layers::get(tx, sound.id))? {
            self.finish_removal(&[unused])?;
        }
        self.empty_trash_later();
        Ok(decided)
    }

    /// Steps 4 and 5, from wherever they were interrupted. The caller is alone with the layers.
    fn finish_replacement(&self, id: LayerId, successor: LayerId) -> Result<()> {
        let row = self.catalog.read(|tx| layers::get(tx, id))?;
        let row = row.ok_or_else(|| Error::not_found("layer", id))?;
        let driver = self.driver_named(&row.driver)?;
        if driver.stat(successor)?.is_some() {
            let _ = driver.remove(id, &self.layout.trash().join(&row.driver))?;
            point("store.mend.removed")?;
        }
        let _ = driver.rename(successor, id)?;
        point("store.mend.renamed")?;
        let (from, to) = (self.layout.layer(&row.driver, successor), self.layout.layer(&row.driver, id));
        if from.exists() {
            files::remove_any(&to)?;
            point("store.mend.files-removed")?;
            std::fs::rename(&from, &to).map_err(|e| Error::io("put in place", &to, e))?;
        }
        point("store.mend.files")?;
        let root = crate::layout::open_folder(self.layout.data())?;
        files::barrier(&root, self.layout.data())?;
        point("store.mend.placed")?;
        let file = LayerFile::read(&to)?.ok_or_else(|| {
            Error::new(Code::Damaged, "record the replaced layer", "its layer.json is gone")
                .object(to.display())
        })?;
        self.catalog.write(Durability::Full, |tx| {
            damage::clear(tx, id)?;
            if let Some(recipe) = &file.recipe {
                layers::set_recipe(tx, id, recipe)?;
            }
            if let Some(blob) = &file.blob {
                layers::set_blob(tx, id, &blob.facts())?;
            }
            layers::set_usage(tx, id, Some(file.usage))?;
            layers::remove(tx, successor, None)?;
            layers::forget(tx, successor)
        })?;
        point("store.mend.done")
    }
}

/// Finishes replacements whose process died, or takes them back.
pub(crate) fn finish_pending(store: &Store) -> Result<()> {
    for found in store.catalog.read(damage::pending)? {
        let Some(successor) = found.successor else { continue };
        let owner = store.catalog.read(|tx| layers::get(tx, successor))?.and_then(|row| row.owner);
        if owner.is_some_and(|owner| locks::lives(&store.layout, owner).unwrap_or(true)) {
            continue;
        }
        let _alone = store.alone_with_layers(found.layer)?;
        // Another process may have been faster.
        let now = store.catalog.read(|tx| damage::of(tx, found.layer))?;
        if now.and_then(|now| now.successor) != Some(successor) {
            continue;
        }
        let row = store.catalog.read_settled(|tx| layers::get(tx, found.layer))?;
        let wanted = row.as_ref().is_some_and(|row| row.state == State::Ready);
        let in_place = match &row {
            Some(row) => !matches!(store.driver_named(&row.driver)?.stat(found.layer), Ok(None)),
            None => false,
        };
        if !wanted || (in_place && !store.mounted_with(found.layer)?.is_empty()) {
            store.catalog.write(Durability::Full, |tx| damage::set_successor(tx, found.layer, None))?;
            continue;
        }
        store.finish_replacement(found.layer, successor)?;
    }
    Ok(())
}

/// How the user calls what is mounted.
fn user_name(tx: &rusqlite::Transaction<'_>, layer: LayerId) -> Result<String> {
    Ok(match containers::holder(tx, layer)? {
        Some((id, _)) => {
            let name = containers::get(tx, &id)?.name;
            format!("container {}", name.map_or_else(|| id.short().to_string(), |name| name.to_string()))
        }
        None => format!("layer {layer}"),
    })
}
