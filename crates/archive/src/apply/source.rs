//! The input of an apply: read in large pieces, every byte hashed.

use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use vellum_types::Digest;

const BUFFER: usize = 256 << 10;
/// Enough that neither side waits for the other over one large write.
const BUFFERS: usize = 4;

type Piece = (Arc<Vec<u8>>, usize);

/// Where the hashing is done.
pub(super) enum Hasher<'s> {
    Inline(Box<Sha256>),
    Thread { jobs: SyncSender<Piece>, free: Receiver<Arc<Vec<u8>>>, worker: ScopedJoinHandle<'s, Sha256> },
}

impl<'s> Hasher<'s> {
    pub(super) fn inline() -> Self {
        Self::Inline(Box::default())
    }

    pub(super) fn threaded<'e>(scope: &'s Scope<'s, 'e>) -> Self {
        let (jobs, queue) = sync_channel::<Piece>(BUFFERS);
        let (back, free) = sync_channel(BUFFERS);
        for _ in 1..BUFFERS {
            // There is room for all of them.
            let _ = back.send(Arc::new(vec![0; BUFFER]));
        }
        let worker = scope.spawn(move || {
            let mut hasher = Sha256::new();
            for (piece, length) in queue {
                hasher.update(&piece[..length]);
                let _ = back.send(piece);
            }
            hasher
        });
        Self::Thread { jobs, free, worker }
    }
}

pub(super) struct Source<'s, R> {
    input: R,
    hasher: Hasher<'s>,
    buffer: Arc<Vec<u8>>,
    position: usize,
    end: usize,
    total: u64,
}

impl<'s, R: Read> Source<'s, R> {
    pub(super) fn new(input: R, hasher: Hasher<'s>) -> Self {
        Self { input, hasher, buffer: Arc::new(vec![0; BUFFER]), position: 0, end: 0, total: 0 }
    }

    fn refill(&mut self) -> io::Result<()> {
        if let (Hasher::Thread { free, .. }, true) = (&self.hasher, self.end > 0) {
            // Ours goes first, so that the one that comes back is nobody else's.
            self.buffer = Arc::default();
            self.buffer = free.recv().map_err(|_| io::Error::other("the hashing thread is gone"))?;
        }
        let buffer =
            Arc::get_mut(&mut self.buffer).ok_or_else(|| io::Error::other("a buffer is still in use"))?;
        (self.position, self.end) = (0, 0);
        while self.end < buffer.len() {
            match self.input.read(&mut buffer[self.end..]) {
                Ok(0) => break,
                Ok(got) => self.end += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.total += self.end as u64;
        match &mut self.hasher {
            Hasher::Inline(hasher) => hasher.update(&self.buffer[..self.end]),
            Hasher::Thread { jobs, .. } if self.end > 0 => jobs
                .send((Arc::clone(&self.buffer), self.end))
                .map_err(|_| io::Error::other("the hashing thread is gone"))?,
            Hasher::Thread { .. } => {}
        }
        Ok(())
    }

    /// The digest and the number of all bytes read.
    pub(super) fn finish(self) -> (Digest, u64) {
        let hasher = match self.hasher {
            Hasher::Inline(hasher) => *hasher,
            Hasher::Thread { jobs, worker, .. } => {
                drop(jobs);
                match worker.join() {
                    Ok(hasher) => hasher,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        };
        (Digest::from_sha256(hasher.finalize().into()), self.total)
    }
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let part = chunk.len().min(buffer.len());
        buffer[..part].copy_from_slice(&chunk[..part]);
        self.consume(part);
        Ok(part)
    }
}

impl<R: Read> BufRead for Source<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.end {
            self.refill()?;
        }
        Ok(&self.buffer[self.position..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}
