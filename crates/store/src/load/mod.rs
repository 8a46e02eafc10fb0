//! Loading images.
//!
//! 1. The floor of free space is looked at; a descriptor of the data's folder is opened, so that every error of a later write-back
//!    is seen by the barrier.
//! 2. Layers are unpacked, by several workers where the driver can join layers later, else one after the other, each decompressed by a thread of its own
//!    while it is applied. A worker takes the lowest layer that nobody has:
//!    - *claim* (a transaction that is not synced): a layer of this chain ID that is ready is pinned and used, unless it is known to be
//!      damaged or not on disk: then a sound one is unpacked and takes its place ([`crate::mend`]); one that another
//!      living operation stages is left to it; one of a dead operation is rolled back; else an intent is made.
//!    - `layers/<driver>/<id>/` is made, the driver makes the layer, the blob is hashed, decompressed, and applied to the
//!      driver's target, writing recipe and manifest. Digests of tar and blob are compared.
//! 3. The calling thread joins layers to their parents in order, as they become complete, and waits for those that others
//!    stage: with a deeper layer it only ever waits for a shallower one, so two loads cannot wait for each other.
//! 4. *Group*: when a second has passed since the last, what is joined is recorded: side files, one `syncfs`, and one
//!    durable transaction that calls these layers ready. A load that is killed later resumes from there.
//! 5. The last group's transaction also records the image and its names, which are re-pointed at once.
//!
//! A load that finds a pool full is tried once more when the pool has been made larger.
//!
//! On an error all intents are rolled back, and layers that this load made ready and that nothing else uses go too.
//! Memory does not grow with the image: a worker has one decoder, one buffer, and what the target keeps for each entry.

mod ahead;
mod board;
mod claim;
mod group;
mod mend;
mod unpack;

pub(crate) use group::{NewNames, record_image};
pub(crate) use unpack::{Filled, apply_stream, not_decompressed};

use crate::catalog::{Durability, intents, layers};
use crate::faults::point;
use crate::locks::Owner;
use crate::{
    Code, Error, ImageInput, LayerOutcome, LayerSource, LeftOut, LoadReport, Progress, Result, Store,
    imageconfig,
};
use board::{Board, Next, Slot};
use group::Group;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use unpack::Unpacked;
use vellum_driver::Ability;
use vellum_types::{ChainId, DiffId, ImageId, LayerId};

/// One layer of the image that is loaded.
struct Job<'a> {
    index: usize,
    diff_id: DiffId,
    chain_id: ChainId,
    source: &'a dyn LayerSource,
}

/// A load at work.
struct Load<'a> {
    store: &'a Store,
    owner: &'a Owner,
    jobs: Vec<Job<'a>>,
    keep_blobs: bool,
    progress: &'a dyn Progress,
    board: Board,
    /// Set when anything failed: readers stop.
    cancel: AtomicBool,
    /// Layers can be unpacked without their parent.
    parallel: bool,
}

impl Store {
    /// Loads an image: unpacks the layers that the store does not have, and records the image with its names. What is
    /// reported is durable.
    ///
    /// # Errors
    /// [`Code::Archive`]: a digest is wrong, the configuration or an archive is; the error names the layer and the entry.
    /// [`Code::Full`]: no space, or below the floor. In each case the store is as before.
    pub fn load_image(&self, input: ImageInput<'_>, progress: &dyn Progress) -> Result<LoadReport> {
        let facts = imageconfig::read(&input.config)?;
        if facts.diff_ids.len() != input.layers.len() {
            return Err(Error::new(
                Code::Archive,
                "load the image",
                format!(
                    "its configuration lists {} layers, and {} were given",
                    facts.diff_ids.len(),
                    input.layers.len()
                ),
            ));
        }
        self.check_depth(facts.diff_ids.len())?;
        self.check_floor("load the image")?;
        match self.load_once(&input, &facts, progress) {
            // A pool that filled faster than it was made larger has room by now.
            Err(e) if e.is_full_write() && self.pool_has_room() => self.load_once(&input, &facts, progress),
            result => result,
        }
    }

    fn load_once(
        &self,
        input: &ImageInput<'_>,
        facts: &imageconfig::Facts,
        progress: &dyn Progress,
    ) -> Result<LoadReport> {
        let chain = ChainId::chain(&facts.diff_ids);
        let jobs: Vec<Job<'_>> = (facts.diff_ids.iter().zip(&chain).zip(&input.layers).enumerate())
            .map(|(index, ((diff, chain), source))| Job {
                index,
                diff_id: *diff,
                chain_id: *chain,
                source: &**source,
            })
            .collect();
        let owner = self.announce()?;
        let load = Load {
            store: self,
            owner: &owner,
            board: Board::new(jobs.len()),
            jobs,
            keep_blobs: input.keep_blobs,
            progress,
            cancel: AtomicBool::new(false),
            parallel: self.driver.capabilities().has(Ability::ParallelUnpack),
        };
        point("store.load.begin")?;
        let loaded = self.watched(&|e| load.give_up(e), || load.run(input, facts)).map_err(|e| {
            load.undo();
            crate::pool::explain(&self.layout, e)
        });
        // What could not go while layers were being filled.
        self.empty_trash_later();
        loaded
    }

    fn check_depth(&self, layers: usize) -> Result<()> {
        match self.driver.capabilities().limit(Ability::MaxLayers) {
            // One is left for the container's own layer.
            Some(limit) if layers as u64 >= limit => Err(Error::new(
                Code::Unsupported,
                "load the image",
                format!("it has {layers} layers, and the driver '{}' stacks {limit}", self.driver.name()),
            )),
            _ => Ok(()),
        }
    }
}

/// Has a load end whose source panics in one of its threads; the panic goes on from there.
struct ToldOfPanics<'a, 'l>(&'a Load<'l>);

impl Drop for ToldOfPanics<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.give_up(Error::new(Code::System, "unpack a layer", "a thread of the load panicked"));
        }
    }
}

impl Load<'_> {
    fn run(&self, input: &ImageInput<'_>, facts: &imageconfig::Facts) -> Result<LoadReport> {
        let mut group = Group::open(self)?;
        std::thread::scope(|scope| {
            for _ in 0..self.workers() {
                scope.spawn(|| self.work());
            }
            let out = self.coordinate(&mut group);
            // Also on success: workers that wait for something to do end.
            self.cancel.store(true, Ordering::Relaxed);
            self.board.close();
            out
        })?;
        let id = ImageId::of(&input.config);
        let names = group.finish(id, input, facts)?;
        point("store.load.done")?;
        let report = self.board.report();
        Ok(LoadReport {
            id,
            names,
            layers_new: report.unpacked,
            layers_shared: self.jobs.len() - report.unpacked,
            bytes_unpacked: report.bytes,
            left_out: report
                .left_out
                .into_iter()
                .map(|(index, path, reason)| LeftOut { diff_id: self.jobs[index].diff_id, path, reason })
                .collect(),
        })
    }

    /// How many layers are unpacked at once.
    fn workers(&self) -> usize {
        if self.parallel { self.store.worker_count() } else { 1 }.min(self.jobs.len())
    }

    /// Whether a layer is decompressed and applied by two threads: where otherwise one would do it all.
    fn reads_ahead(&self) -> bool {
        self.workers() == 1 && self.store.worker_count() > 1
    }

    /// One worker: takes layers until there are none left.
    fn work(&self) {
        let _told = ToldOfPanics(self);
        while let Some((index, parent)) = self.board.take(self.parallel) {
            let job = &self.jobs[index];
            match self.one_layer(job, parent) {
                Ok(slot) => self.board.put(index, slot),
                Err(e) => self.give_up(e.layer_context(job)),
            }
        }
    }

    /// Has all workers stop.
    fn give_up(&self, error: Error) {
        self.cancel.store(true, Ordering::Relaxed);
        self.board.fail(error);
    }

    /// Has one layer: unpacks it, unless somebody has it or is at it.
    fn one_layer(&self, job: &Job<'_>, parent: Option<LayerId>) -> Result<Slot> {
        let id = match self.claim(job, if self.parallel { None } else { parent })? {
            claim::Claim::Foreign => return Ok(Slot::Foreign),
            claim::Claim::Ready(id) => {
                if let Some(unpacked) = self.unpack_if_damaged(job, id)? {
                    return Ok(Slot::Unpacked(Box::new(unpacked)));
                }
                self.keep_blob_of(job, id)?;
                self.progress.layer_done(job.index, LayerOutcome::Shared);
                return Ok(Slot::Ready(id));
            }
            claim::Claim::Mine(id) => id,
        };
        point("store.load.intent")?;
        self.store.check_floor("unpack the layer")?;
        let unpacked = self.unpack(job, id, if self.parallel { None } else { parent })?;
        point("store.load.unpacked")?;
        self.progress.layer_done(job.index, LayerOutcome::Unpacked);
        Ok(Slot::Unpacked(Box::new(unpacked)))
    }

    /// Joins, groups, and waits for others, until every layer is joined or ready.
    fn coordinate(&self, group: &mut Group<'_>) -> Result<()> {
        loop {
            match self.board.next(group.is_due()) {
                Next::Failed(e) => return Err(e),
                Next::Join(index, parent, mut unpacked) => {
                    self.join(parent, &mut unpacked)?;
                    if let Some(damaged) = &unpacked.mends {
                        self.mend(damaged, parent, &unpacked, group.barrier())?;
                        self.board.put(index, Slot::Ready(damaged.id));
                        continue;
                    }
                    self.board.put(index, Slot::Joined(unpacked.id));
                    group.add(index, parent, unpacked);
                }
                Next::Group => {
                    group.record(|tx, group| group.layers_ready(tx))?;
                    group.recorded(&self.board);
                }
                Next::AskOthers(indices) => {
                    self.ask_others(&indices)?;
                    self.board.wait(Duration::from_millis(20));
                }
                Next::Wait => self.board.wait(Duration::from_millis(200)),
                Next::Done => return Ok(()),
            }
        }
    }

    fn join(&self, parent: Option<LayerId>, unpacked: &mut Unpacked) -> Result<()> {
        let _reading = self.store.reading_layers()?;
        self.store.join_filled(unpacked.id, parent, &mut unpacked.filled)?;
        point("store.load.joined")
    }

    /// Looks what became of layers that other operations stage.
    fn ask_others(&self, indices: &[usize]) -> Result<()> {
        for index in indices {
            let job = &self.jobs[*index];
            match self.claim_if_ready(job)? {
                claim::Watched::Ready(id) => {
                    self.keep_blob_of(job, id)?;
                    self.progress.layer_done(*index, LayerOutcome::Shared);
                    self.board.put(*index, Slot::Ready(id));
                }
                claim::Watched::Gone => self.board.put(*index, Slot::Todo),
                claim::Watched::AtWork => {}
            }
        }
        Ok(())
    }

    /// The store is as before: intents are rolled back, and what was called ready meanwhile goes if nothing else has it.
    fn undo(&self) {
        self.store.roll_back(self.owner);
        let made = self.board.made_ready();
        let removed = self.store.catalog.write(Durability::Full, |tx| {
            intents::unpin(tx, self.owner.id)?;
            let mut removed = Vec::new();
            for id in made.iter().rev() {
                let mut lives = self.store.others_live(self.owner.id);
                if let Some(layer) = layers::get(tx, *id)?
                    && layer.state == layers::State::Ready
                    && !layers::needed(tx, *id, &mut lives)?
                {
                    layers::remove(tx, *id, Some(self.owner.id))?;
                    removed.push(layer);
                }
            }
            Ok(removed)
        });
        // What cannot be undone now is unreferenced, and `gc` takes it.
        if let Ok(removed) = removed
            && self.store.finish_removal(&removed).is_ok()
        {
            self.store.empty_trash_later();
        }
        self.store.remove_unnamed_files();
    }
}

impl Store {
    /// How many layers are unpacked at once.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4))
            .max(1)
    }
}

impl Error {
    /// Says which layer of the image it was about.
    fn layer_context(self, job: &Job<'_>) -> Self {
        let code = self.code();
        Error::caused(code, format!("unpack layer {} of the image ({})", job.index + 1, job.diff_id), self)
    }
}
