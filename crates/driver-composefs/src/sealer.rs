//! Threads that seal objects and give them their names.
//!
//! ```text
//!   intake ── whole files ──▶ queue ──▶ threads: seal, stamp, link ──▶ what was made
//! ```
//!
//! ext4 brings a file to the disk while it seals it: one after the other would cost a wait for the disk for each file of a layer, so many are on their way at once. What an intake has
//! handed over counts as there for itself; nobody else may rely on it before [`Sealer::settle`].

use crate::digest::Digest;
use crate::parts::Parts;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use vellum_types::LayerId;

/// Most of them wait for the disk.
const THREADS: usize = 16;
/// Files on their way, each with a descriptor.
const QUEUE: usize = 32;

type Made = io::Result<Vec<(Digest, u64)>>;

/// See the module's documentation. Dropped, it waits for what it was given: no object gets its name after the intake's lock is gone.
pub(crate) struct Sealer {
    queue: Option<SyncSender<(File, Digest)>>,
    threads: Vec<JoinHandle<Made>>,
}

impl Sealer {
    /// For objects of that maker.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(parts: &Arc<Parts>, maker: LayerId) -> io::Result<Self> {
        let (queue, files) = sync_channel(QUEUE);
        let files = Arc::new(Mutex::new(files));
        let mut sealer = Self { queue: Some(queue), threads: Vec::new() };
        for _ in 0..THREADS {
            let (parts, files) = (Arc::clone(parts), Arc::clone(&files));
            let thread = std::thread::Builder::new().name("seal".into());
            match thread.spawn(move || seal_all(&parts, maker, &files)) {
                Ok(thread) => sealer.threads.push(thread),
                // Fewer do it, too.
                Err(_) if !sealer.threads.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sealer)
    }

    /// Takes a whole file; waits while many are on their way. What fails is told by [`Sealer::settle`]; `false`: all threads have failed, so that it is time to ask.
    pub(crate) fn take(&self, file: File, digest: &Digest) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.send((file, *digest)).is_ok())
    }

    /// Waits until all have their names; the objects, and what each takes on disk.
    ///
    /// # Errors
    /// The first one of a file that could not be sealed or named.
    pub(crate) fn settle(mut self) -> Made {
        self.queue = None;
        let mut all = Ok(Vec::new());
        for thread in self.threads.drain(..) {
            let made =
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread that seals has panicked")));
            match (&mut all, made) {
                (Ok(all), Ok(made)) => all.extend(made),
                (Ok(_), Err(error)) => all = Err(error),
                (Err(_), _) => {}
            }
        }
        all
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // Whoever drops it without asking has failed already.
            let _ = thread.join();
        }
    }
}

fn seal_all(parts: &Parts, maker: LayerId, files: &Mutex<Receiver<(File, Digest)>>) -> Made {
    let mut made = Vec::new();
    loop {
        let next = files.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((file, digest)) = next else { return Ok(made) };
        made.push((digest, parts.objects.place(file, &digest, maker)?));
    }
}
