//! Gzip in parallel blocks, as pigz does it.
//!
//! The input is cut into blocks of 128 KiB. Each is deflated by itself with the 32 KiB before it as dictionary, and
//! ends on a byte boundary (an empty stored block, Z_SYNC_FLUSH), so that the pieces simply follow each other; the
//! last ends the stream. A thread takes whichever block is next, the writer puts them out in order: the output is a
//! function of the input alone.

use flate2::{Compress, Compression, FlushCompress, Status};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

const BLOCK: usize = 128 << 10;
const WINDOW: usize = 32 << 10;
/// No time, no name, "unknown" as operating system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

struct Job {
    data: Vec<u8>,
    /// What came before, at most [`WINDOW`] bytes.
    before: Vec<u8>,
    last: bool,
    done: SyncSender<io::Result<Piece>>,
}

struct Piece {
    deflated: Vec<u8>,
    crc: crc32fast::Hasher,
}

pub(super) struct ParallelGzip<W> {
    out: W,
    block: Vec<u8>,
    before: Vec<u8>,
    crc: crc32fast::Hasher,
    length: u64,
    jobs: Option<SyncSender<Job>>,
    waiting: VecDeque<Receiver<io::Result<Piece>>>,
    most: usize,
    workers: Vec<std::thread::JoinHandle<()>>,
    started: bool,
}

impl<W> std::fmt::Debug for ParallelGzip<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParallelGzip").field("threads", &self.workers.len()).finish_non_exhaustive()
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    let mut compress = Compress::new(Compression::new(6), false);
    loop {
        let job = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        let piece = deflate(&mut compress, &job);
        // The other end is gone when the encoder was dropped early.
        let _ = job.done.send(piece);
    }
}

fn deflate(compress: &mut Compress, job: &Job) -> io::Result<Piece> {
    compress.reset();
    if !job.before.is_empty() {
        compress.set_dictionary(&job.before).map_err(io::Error::other)?;
    }
    let mut deflated = Vec::with_capacity(job.data.len() / 2 + 1024);
    let flush = if job.last { FlushCompress::Finish } else { FlushCompress::Sync };
    loop {
        let used = usize::try_from(compress.total_in()).unwrap_or(usize::MAX).min(job.data.len());
        let status =
            compress.compress_vec(&job.data[used..], &mut deflated, flush).map_err(io::Error::other)?;
        let all_in = compress.total_in() == job.data.len() as u64;
        // A sync flush is complete when the compressor left room in the output.
        if status == Status::StreamEnd || (!job.last && all_in && deflated.len() < deflated.capacity()) {
            break;
        }
        deflated.reserve(64 << 10);
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&job.data);
    Ok(Piece { deflated, crc })
}

impl<W: Write> ParallelGzip<W> {
    pub(super) fn new(out: W, threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let (jobs, queue) = sync_channel(threads * 2);
        let queue = Arc::new(Mutex::new(queue));
        let mut workers = Vec::with_capacity(threads);
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            workers.push(std::thread::Builder::new().name("gzip".into()).spawn(move || work(&queue))?);
        }
        Ok(Self {
            out,
            block: Vec::with_capacity(BLOCK),
            before: Vec::new(),
            crc: crc32fast::Hasher::new(),
            length: 0,
            jobs: Some(jobs),
            waiting: VecDeque::new(),
            most: threads * 2,
            workers,
            started: false,
        })
    }

    pub(super) fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // A full block is sent only when more follows, because the last one is marked.
        if self.block.len() == BLOCK {
            self.send(false)?;
        }
        let part = data.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&data[..part]);
        self.length += part as u64;
        Ok(part)
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        let data = std::mem::replace(&mut self.block, Vec::with_capacity(if last { 0 } else { BLOCK }));
        let window = data[data.len().saturating_sub(WINDOW)..].to_vec();
        let before = std::mem::replace(&mut self.before, window);
        let (done, piece) = sync_channel(1);
        let job = Job { data, before, last, done };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(io::Error::other("the compressing threads are gone"));
        }
        self.waiting.push_back(piece);
        while self.waiting.len() > self.most {
            self.collect()?;
        }
        Ok(())
    }

    fn collect(&mut self) -> io::Result<()> {
        let Some(piece) = self.waiting.pop_front() else { return Ok(()) };
        let piece = piece.recv().map_err(|_| io::Error::other("a compressing thread died"))??;
        if !self.started {
            self.out.write_all(&HEADER)?;
            self.started = true;
        }
        self.crc.combine(&piece.crc);
        self.out.write_all(&piece.deflated)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.send(true)?;
        while !self.waiting.is_empty() {
            self.collect()?;
        }
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| io::Error::other("a compressing thread died"))?;
        }
        self.out.write_all(&self.crc.finalize().to_le_bytes())?;
        // The format keeps the length modulo 2^32.
        self.out.write_all(&self.length.to_le_bytes()[..4])?;
        Ok(self.out)
    }
}
