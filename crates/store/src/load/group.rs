//! Recording what was unpacked: one barrier and one durable transaction for many layers.

use super::Load;
use super::board::Board;
use super::unpack::Unpacked;
use crate::catalog::layers::Role;
use crate::catalog::{Durability, images, intents, layers};
use crate::containers::layer_file;
use crate::faults::point;
use crate::layerfiles::BlobFile;
use crate::{ImageInput, Result, Store, files, imageconfig};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use vellum_types::{ImageId, ImageName, LayerId};

/// How long joined layers wait for the next group. Each barrier makes the file system write what all workers have written.
const INTERVAL: Duration = Duration::from_secs(1);

/// Layers that are joined and not recorded yet.
pub(super) struct Group<'a> {
    load: &'a Load<'a>,
    /// Of the data, opened before the first write: `syncfs` on it reports every error since.
    barrier: OwnedFd,
    layers: Vec<(usize, Option<LayerId>, Box<Unpacked>)>,
    last: Instant,
}

impl<'a> Group<'a> {
    pub(super) fn open(load: &'a Load<'a>) -> Result<Self> {
        let barrier = crate::layout::open_folder(load.store.layout.data())?;
        Ok(Self { load, barrier, layers: Vec::new(), last: Instant::now() })
    }

    pub(super) fn barrier(&self) -> &OwnedFd {
        &self.barrier
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() > INTERVAL
    }

    pub(super) fn add(&mut self, index: usize, parent: Option<LayerId>, unpacked: Box<Unpacked>) {
        self.layers.push((index, parent, unpacked));
    }

    /// Writes what lies beside the layers, makes the barrier, and runs the transaction.
    pub(super) fn record<T>(&self, work: impl FnOnce(&Transaction<'_>, &Self) -> Result<T>) -> Result<T> {
        let store = self.load.store;
        let _placing = crate::open::placing(&store.layout)?;
        for (index, parent, unpacked) in &self.layers {
            let job = &self.load.jobs[*index];
            if let Some(kept) = &unpacked.blob {
                self.load.place(kept)?;
            }
            let mut file = layer_file(unpacked.id, Role::Image, *parent, Timestamp::now(), None);
            file.chain_id = Some(job.chain_id);
            file.diff_id = Some(job.diff_id);
            file.usage = unpacked.filled.finished.usage;
            file.tar_size = unpacked.filled.tar_size;
            file.recipe = Some(unpacked.filled.recipe);
            file.blob = BlobFile::of(unpacked.blob.as_ref().map(|kept| &kept.facts));
            file.write(&store.layout.layer(store.driver.name(), unpacked.id))?;
        }
        point("store.load.written")?;
        if !self.layers.is_empty() {
            files::barrier(&self.barrier, store.layout.data())?;
        }
        point("store.load.synced")?;
        let out = store.catalog.write(Durability::Full, |tx| work(tx, self))?;
        point("store.load.ready")?;
        Ok(out)
    }

    /// The rows of the layers.
    pub(super) fn layers_ready(&self, tx: &Transaction<'_>) -> Result<()> {
        for (index, parent, unpacked) in &self.layers {
            let job = &self.load.jobs[*index];
            layers::finish(
                tx,
                &layers::Finish {
                    id: unpacked.id,
                    parent: *parent,
                    chain: Some((&job.chain_id, &job.diff_id)),
                    usage: unpacked.filled.finished.usage,
                    tar_size: unpacked.filled.tar_size,
                    recipe: Some(&unpacked.filled.recipe),
                    blob: unpacked.blob.as_ref().map(|kept| &kept.facts),
                },
            )?;
            intents::pin(tx, self.load.owner.id, unpacked.id)?;
        }
        Ok(())
    }

    pub(super) fn recorded(&mut self, board: &Board) {
        let ready: Vec<_> = self.layers.drain(..).map(|(index, _, unpacked)| (index, unpacked.id)).collect();
        board.ready(&ready);
        self.last = Instant::now();
    }

    /// The last group, and with it the image.
    pub(super) fn finish(
        mut self,
        id: ImageId,
        input: &ImageInput<'_>,
        facts: &imageconfig::Facts,
    ) -> Result<Vec<ImageName>> {
        let store = self.load.store;
        let board = &self.load.board;
        let layers = board.layers();
        let names = NewNames(&input.names);
        let placing = crate::open::placing(&store.layout)?;
        store.place_config(&id, &input.config)?;
        point("store.load.config")?;
        let top = layers.last().copied();
        let prepared = top.map(|top| store.prepared(&*store.driver, top)).transpose()?.flatten();
        self.record(|tx, group| {
            group.layers_ready(tx)?;
            if let (Some(top), Some(usage)) = (top, prepared) {
                layers::set_usage(tx, top, Some(usage))?;
            }
            let image = images::NewImage {
                driver: store.driver.name(),
                id,
                created: facts.created,
                platform: facts.platform.as_ref(),
                manifest: input.manifest.as_deref(),
                added: Timestamp::now(),
                layers: &layers,
            };
            record_image(store, tx, &image, names)?;
            intents::unpin(tx, self.load.owner.id)
        })?;
        drop(placing);
        self.recorded(board);
        Ok(input.names.clone())
    }
}

/// Names that an image gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewNames<'a>(pub(crate) &'a [ImageName]);

/// The rows of an image and its names, and the files that follow them.
pub(crate) fn record_image(
    store: &Store,
    tx: &Transaction<'_>,
    image: &images::NewImage<'_>,
    names: NewNames<'_>,
) -> Result<()> {
    images::add(tx, image)?;
    let mut changed = vec![image.id];
    for name in names.0 {
        changed.extend(images::tag(tx, image.driver, &image.id, name)?);
    }
    changed.sort_unstable();
    changed.dedup();
    changed.iter().try_for_each(|id| store.follow_image(tx, image.driver, id))
}

impl Store {
    /// Puts a configuration in place, durably, unless it is there.
    pub(crate) fn place_config(&self, id: &ImageId, bytes: &[u8]) -> Result<()> {
        let name = id.digest().hex();
        let path = self.layout.configs().join(&name);
        match files::read_if_there(&path)? {
            Some(there) if there == bytes => Ok(()),
            _ => files::publish(&self.layout.configs(), &name, bytes),
        }
    }
}
