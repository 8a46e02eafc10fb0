//! Who has which layer of a load: shared by the workers and the thread that joins.

use super::unpack::Unpacked;
use crate::{Code, Error};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;
use vellum_archive::target::LayerPath;
use vellum_types::LayerId;

/// Where one layer is.
pub(super) enum Slot {
    /// Nobody is at it.
    Todo,
    /// A worker is at it.
    Working,
    /// Another operation stages it.
    Foreign,
    /// Unpacked, not joined yet.
    Unpacked(Box<Unpacked>),
    /// Joined to its parent, not recorded yet.
    Joined(LayerId),
    /// In the catalog.
    Ready(LayerId),
}

/// What the joining thread should do now.
pub(super) enum Next {
    Failed(Error),
    /// Join this layer to this parent.
    Join(usize, Option<LayerId>, Box<Unpacked>),
    /// Record what is joined.
    Group,
    /// Nothing but to look what became of these.
    AskOthers(Vec<usize>),
    Wait,
    Done,
}

/// What a load did, for its report.
#[derive(Default)]
pub(super) struct Report {
    pub(super) unpacked: usize,
    pub(super) bytes: u64,
    pub(super) left_out: Vec<(usize, LayerPath, String)>,
}

struct State {
    slots: Vec<Slot>,
    error: Option<Error>,
    closed: bool,
    report: Report,
    /// Layers that this load called ready.
    made_ready: Vec<LayerId>,
}

pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

impl Board {
    pub(super) fn new(layers: usize) -> Self {
        let state = State {
            slots: (0..layers).map(|_| Slot::Todo).collect(),
            error: None,
            closed: false,
            report: Report::default(),
            made_ready: Vec::new(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// No code panics while it holds the lock; were it to, the state is still one that was put.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The lowest layer that nobody has and its parent (if that is joined); waits when there may be one later. `None` when there is
    /// no more. Unless `parallel`, a layer can be taken only when the one below is joined.
    pub(super) fn take(&self, parallel: bool) -> Option<(usize, Option<LayerId>)> {
        let mut state = self.lock();
        loop {
            if state.closed || state.error.is_some() {
                return None;
            }
            let todo = state.slots.iter().position(|slot| matches!(slot, Slot::Todo));
            if let Some(index) = todo {
                let below = state.below(index);
                if parallel || below.is_some() {
                    state.slots[index] = Slot::Working;
                    return Some((index, below.flatten()));
                }
            }
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    pub(super) fn put(&self, index: usize, slot: Slot) {
        let mut state = self.lock();
        if let Slot::Unpacked(unpacked) = &slot {
            state.report.unpacked += 1;
            state.report.bytes += unpacked.filled.tar_size;
            let left_out =
                unpacked.filled.left_out.iter().map(|(path, reason)| (index, path.clone(), reason.clone()));
            state.report.left_out.extend(left_out);
        }
        state.slots[index] = slot;
        self.changed.notify_all();
    }

    /// The first error counts; those after it mostly follow from it.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// What to do now. `due`: it is time to record a group.
    pub(super) fn next(&self, due: bool) -> Next {
        let mut state = self.lock();
        if state.error.is_some() {
            let error =
                state.error.take().unwrap_or_else(|| Error::new(Code::System, "load", "a worker failed"));
            state.closed = true;
            return Next::Failed(error);
        }
        for index in 0..state.slots.len() {
            let Some(below) = state.below(index) else { continue };
            if matches!(state.slots[index], Slot::Unpacked(_))
                && let Slot::Unpacked(unpacked) = std::mem::replace(&mut state.slots[index], Slot::Working)
            {
                return Next::Join(index, below, unpacked);
            }
        }
        let joined = state.slots.iter().any(|slot| matches!(slot, Slot::Joined(_)));
        if state.slots.iter().all(|slot| matches!(slot, Slot::Joined(_) | Slot::Ready(_))) {
            return Next::Done;
        }
        let foreign: Vec<usize> = (state.slots.iter().enumerate())
            .filter_map(|(index, slot)| matches!(slot, Slot::Foreign).then_some(index))
            .collect();
        let working = state.slots.iter().any(|slot| matches!(slot, Slot::Working | Slot::Todo));
        // Before this load waits for others, it lets them have what it has: they may wait for that.
        match (joined, foreign.is_empty()) {
            (true, _) if due => Next::Group,
            (true, false) if !working => Next::Group,
            (_, false) => Next::AskOthers(foreign),
            (_, true) => Next::Wait,
        }
    }

    pub(super) fn wait(&self, at_most: Duration) {
        let state = self.lock();
        drop(self.changed.wait_timeout(state, at_most));
    }

    /// These layers are in the catalog now.
    pub(super) fn ready(&self, layers: &[(usize, LayerId)]) {
        let mut state = self.lock();
        for (index, id) in layers {
            state.slots[*index] = Slot::Ready(*id);
            state.made_ready.push(*id);
        }
        self.changed.notify_all();
    }

    pub(super) fn made_ready(&self) -> Vec<LayerId> {
        self.lock().made_ready.clone()
    }

    /// The image's layers, the base first, when all are there.
    pub(super) fn layers(&self) -> Vec<LayerId> {
        (self.lock().slots.iter())
            .filter_map(|slot| match slot {
                Slot::Joined(id) | Slot::Ready(id) => Some(*id),
                _ => None,
            })
            .collect()
    }

    pub(super) fn report(&self) -> Report {
        std::mem::take(&mut self.lock().report)
    }
}

impl State {
    /// The layer below, when it is joined: `Some(None)` below the base.
    fn below(&self, index: usize) -> Option<Option<LayerId>> {
        match index.checked_sub(1).map(|below| &self.slots[below]) {
            None => Some(None),
            Some(Slot::Joined(id) | Slot::Ready(id)) => Some(Some(*id)),
            Some(_) => None,
        }
    }
}
