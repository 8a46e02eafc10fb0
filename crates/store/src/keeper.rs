//! The keeper: what a server does behind the requests.
//!
//! A command that removes something has it in the trash when it ends. A server has time after its answer: a removal is *done* when the
//! catalog says so, durably, and what is left of it is the keeper's, a thread that takes many at once.
//!
//! 1. The request's one durable transaction calls the layer `removing`, with the keeper as its owner. It is answered; the key is free.
//! 2. The keeper lets some gather, renames their folders into the trash, deletes there what is small, and forgets them all in one transaction.
//! 3. It writes the `layer.json` of snapshots that were made, and are still there after that while.
//! 4. It begins the catalog's log anew when that has become long.
//!
//! A server also remembers the file system's descriptor from when a snapshot was made that a front end unpacks into: the kernel tells a descriptor of every error since
//! it was opened, and one from before the first write misses none, whoever else has heard of it ([`Store::expect_commit`]).
//!
//! | dies | left | by whom it goes |
//! |---|---|---|
//! | after 1 | layers `removing` of an owner that is dead | the next open, as every interrupted removal |
//! | in 2 | the same, some of them in the trash already | the same; the trash by the worker |
//! | before 3 | fresh layers without that file | the next use in another process, and `check` ([`crate::fresh`]) |
//!
//! It owns nothing on disk but its owner's lock, and takes no lock while it waits.

use crate::catalog::layers::Layer;
use crate::faults::point;
use crate::layerfiles::LayerFile;
use crate::locks::{Owner, OwnerId};
use crate::{Code, Error, Result, Store};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vellum_types::LayerId;

/// How long removals gather.
const GATHER: Duration = Duration::from_millis(50);

/// Who is not committed after so long was given up.
const LONGEST: Duration = Duration::from_secs(600);

/// Does what can be done behind requests, as long as it is there; what is left then it does at once.
#[derive(Debug)]
pub struct Keeper {
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

/// Where requests leave what the keeper is to do.
#[derive(Debug)]
pub(crate) struct Desk {
    owner: Owner,
    state: Mutex<State>,
    changed: Condvar,
    unpacked: Mutex<Unpacked>,
}

/// Layers that are being unpacked into, since when, and the file system's descriptor of that moment.
type Unpacked = BTreeMap<LayerId, (Instant, OwnedFd)>;

#[derive(Debug, Default)]
struct State {
    removed: Vec<Layer>,
    /// Made just now, without their `layer.json`.
    made: Vec<LayerId>,
    /// Somebody waits until all is done.
    hurry: bool,
    at_work: bool,
    ended: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.made.is_empty()
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can fail is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpacked(&self) -> MutexGuard<'_, Unpacked> {
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something to the keeper. It is woken by the first only: until it takes that, it gathers.
    fn leave(&self, mut state: MutexGuard<'_, State>, put: impl FnOnce(&mut State)) {
        let first = state.is_empty();
        put(&mut state);
        drop(state);
        if first {
            self.changed.notify_all();
        }
    }

    /// What was removed and what was made since the last time; `None` when the keeper is to end.
    fn next(&self, untidy: impl Fn() -> bool) -> Option<(Vec<Layer>, Vec<LayerId>)> {
        let mut state = self.state();
        state.at_work = false;
        self.changed.notify_all();
        while state.is_empty() && !untidy() {
            if state.ended {
                return None;
            }
            state.hurry = false;
            state = self.wait(state);
        }
        if !state.is_empty() && !state.hurry && !state.ended {
            let gathered =
                self.changed.wait_timeout_while(state, GATHER, |state| !state.hurry && !state.ended);
            state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.at_work = true;
        Some((std::mem::take(&mut state.removed), std::mem::take(&mut state.made)))
    }
}

impl Keeper {
    /// Starts it. A store has one; in one that was opened for reading only there is nothing to do.
    ///
    /// # Errors
    /// [`Code::Exists`]: the store has one; no thread can be started.
    pub fn start(store: Arc<Store>) -> Result<Self> {
        if store.read_only.is_some() {
            return Ok(Self { store, thread: None });
        }
        let desk = Desk {
            owner: store.announce()?,
            state: Mutex::default(),
            changed: Condvar::new(),
            unpacked: Mutex::default(),
        };
        if store.desk.set(desk).is_err() {
            return Err(Error::new(Code::Exists, "start the store's keeper", "it has one"));
        }
        let keeping = Arc::clone(&store);
        let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || keeping.keep());
        let thread = thread.map_err(|e| Error::io("start a thread for", store.root(), e))?;
        store.catalog.is_kept();
        Ok(Self { store, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(desk) = self.store.desk.get() {
            desk.state().ended = true;
            desk.changed.notify_all();
        }
        // A panic was told where it happened; the next open does what it left.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whose the layers are that a request removes, until they are off the disk.
pub(crate) enum Remover<'a> {
    Keeper(&'a Desk),
    Request(Owner),
}

impl Remover<'_> {
    pub(crate) fn id(&self) -> OwnerId {
        match self {
            Self::Keeper(desk) => desk.owner.id,
            Self::Request(owner) => owner.id,
        }
    }

    /// Takes off the disk what the catalog, durably, calls `removing`: behind the request, or now.
    pub(crate) fn finish(self, store: &Store, removed: Vec<Layer>) -> Result<()> {
        if let Self::Keeper(desk) = &self {
            let state = desk.state();
            if !state.ended {
                desk.leave(state, |state| state.removed.extend(removed));
                return Ok(());
            }
        }
        store.finish_removal(&removed)?;
        store.empty_trash_later();
        Ok(())
    }
}

impl Store {
    /// Begins a removal.
    pub(crate) fn remover(&self) -> Result<Remover<'_>> {
        match self.desk.get() {
            Some(desk) => Ok(Remover::Keeper(desk)),
            None => self.announce().map(Remover::Request),
        }
    }

    /// Leaves the `layer.json` of a fresh layer to the keeper. Where it cannot be written, who uses the layer next, or checks, makes good for it: the layer is there.
    pub(crate) fn provide_file_later(&self, layer: LayerId) {
        if let Some(desk) = self.desk.get() {
            let state = desk.state();
            if !state.ended {
                return desk.leave(state, |state| state.made.push(layer));
            }
        }
        self.provide_file(layer);
    }

    fn provide_file(&self, layer: LayerId) {
        let _ = point("store.keeper.file").map(|()| self.follow_layer(layer, LayerFile::provide));
    }

    /// The layer is written to from now on, and committed soon.
    pub(crate) fn expect_commit(&self, layer: LayerId) {
        if let Some(desk) = self.desk.get()
            && let Ok(data) = crate::layout::open_folder(self.layout.data())
        {
            let mut unpacked = desk.unpacked();
            unpacked.retain(|_, (since, _)| since.elapsed() < LONGEST);
            unpacked.insert(layer, (Instant::now(), data));
        }
    }

    /// The layer is committed now, or removed. Gives the descriptor from before it was written to.
    pub(crate) fn no_more_expected(&self, layer: LayerId) -> Option<OwnedFd> {
        self.desk.get()?.unpacked().remove(&layer).map(|(_, data)| data)
    }

    fn keep(&self) {
        let Some(desk) = self.desk.get() else { return };
        // What could not be removed, to be tried again with the next.
        let mut left: Vec<Layer> = Vec::new();
        while let Some((mut batch, mut made)) = desk.next(|| self.catalog.is_untidy()) {
            made.retain(|id| !batch.iter().any(|layer| layer.id == *id));
            batch.append(&mut left);
            if !batch.is_empty() {
                left = self.finish_batch(batch);
                self.empty_trash_of_many();
            }
            made.into_iter().for_each(|id| self.provide_file(id));
            if self.catalog.is_untidy() {
                // A writer does it when the keeper fails at it for long.
                let _ = self.catalog.tidy();
            }
        }
    }

    /// Finishes removals; gives those that failed.
    fn finish_batch(&self, batch: Vec<Layer>) -> Vec<Layer> {
        match self.take_off(&batch) {
            Ok(gone) => batch.into_iter().filter(|layer| !gone.contains(&layer.id)).collect(),
            Err(_) => batch,
        }
    }

    /// Has the log begun anew, if it has become long.
    pub(crate) fn tidy_later(&self) {
        if let Some(desk) = self.desk.get()
            && self.catalog.is_untidy()
        {
            desk.changed.notify_all();
        }
    }

    /// Returns when all that was left to the keeper by now is done.
    pub(crate) fn wait_for_keeper(&self) {
        let Some(desk) = self.desk.get() else { return };
        let mut state = desk.state();
        while !state.is_empty() || state.at_work {
            state.hurry = true;
            desk.changed.notify_all();
            state = desk.wait(state);
        }
    }
}
