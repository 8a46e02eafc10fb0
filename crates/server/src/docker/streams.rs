//! Between the event loop, which never waits, and the store's work, which reads and writes streams.
//!
//! Both ways a channel of a few chunks stands between: who is faster waits. Nothing is ever held as a whole.

use super::calls::told;
use crate::metrics::Meter;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// Chunks on their way.
const DEPTH: usize = 4;

/// A chunk of a tar that is sent.
const CHUNK: usize = 128 << 10;

/// Runs work that waits for a client on a thread of its own, counted and timed. What went wrong comes as a sentence for the client.
pub(super) async fn on_a_thread<T: Send + 'static>(
    meter: &Meter,
    operation: &'static str,
    work: impl FnOnce() -> vellum_store::Result<T> + Send + 'static,
) -> Result<T, String> {
    let begun = Instant::now();
    let (tell, done) = oneshot::channel();
    let started = std::thread::Builder::new().name(format!("vellum-{operation}")).spawn(move || {
        // Nobody listens any more when the client is gone.
        let _ = tell.send(work());
    });
    let result = match started {
        Ok(_) => done.await,
        Err(error) => {
            meter.failed(operation, begun.elapsed());
            return Err(format!("the server cannot start a thread: {error}"));
        }
    };
    let took = begun.elapsed();
    let milliseconds = took.as_secs_f64() * 1e3;
    match result {
        Ok(Ok(out)) => {
            meter.done(operation, took);
            tracing::debug!(door = meter.door(), operation, milliseconds, "done");
            Ok(out)
        }
        Ok(Err(error)) => {
            meter.failed(operation, took);
            let error = told(&error);
            tracing::info!(door = meter.door(), operation, milliseconds, error, "refused");
            Err(error)
        }
        Err(_) => {
            meter.failed(operation, took);
            tracing::error!(door = meter.door(), operation, "the server failed");
            Err("the server failed; its log says how".to_owned())
        }
    }
}

/// The body of a request, to be read where blocking is allowed.
pub(super) fn reader(mut body: Incoming) -> BodyReader {
    let (to, chunks) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        let mut wanted = true;
        while let Some(frame) = body.frame().await {
            let chunk = match frame.map(Frame::into_data) {
                Ok(Ok(data)) => Ok(data),
                Ok(Err(_trailers)) => continue,
                Err(error) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)),
            };
            let failed = chunk.is_err();
            // When the work has failed the rest is read all the same: a client that cannot send would not hear why.
            wanted = wanted && to.send(Some(chunk)).await.is_ok();
            if failed {
                return;
            }
        }
        let _ = to.send(None).await;
    });
    BodyReader { chunks, chunk: Bytes::new(), ended: false }
}

/// See [`reader`].
pub(super) struct BodyReader {
    /// `None` is the body's end.
    chunks: mpsc::Receiver<Option<io::Result<Bytes>>>,
    chunk: Bytes,
    ended: bool,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Some(chunk)) => self.chunk = chunk?,
                Some(None) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server is stopping")),
            }
        }
        let length = self.chunk.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

enum Piece {
    Data(Bytes),
    Failed(String),
    End,
}

/// A tar that is made on one side and sent on the other.
pub(super) fn tar() -> (TarWriter, Tar) {
    let (to, pieces) = mpsc::channel(DEPTH);
    (TarWriter { to, chunk: Vec::new() }, Tar { pieces, first: None, ended: false })
}

/// Where a tar is written, where blocking is allowed.
pub(super) struct TarWriter {
    to: mpsc::Sender<Piece>,
    chunk: Vec<u8>,
}

impl Clone for TarWriter {
    fn clone(&self) -> Self {
        Self { to: self.to.clone(), chunk: Vec::new() }
    }
}

impl TarWriter {
    fn send(&self, piece: Piece) -> io::Result<()> {
        self.to
            .blocking_send(piece)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))
    }

    /// The tar is whole.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Piece::End)
    }

    /// It will never be whole.
    pub(super) async fn failed(self, reason: String) {
        let _ = self.to.send(Piece::Failed(reason)).await;
    }
}

impl Write for TarWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(data);
        if self.chunk.len() >= CHUNK {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.send(Piece::Data(chunk.into()))
    }
}

/// The body of a Diff's answer. It ends only when the tar is whole; else it breaks, and with it the connection.
pub(crate) struct Tar {
    pieces: mpsc::Receiver<Piece>,
    first: Option<Piece>,
    ended: bool,
}

impl Tar {
    /// Waits for its first bytes, or for what went wrong before there were any.
    pub(super) async fn begun(mut self) -> Result<Self, String> {
        match self.pieces.recv().await {
            Some(Piece::Failed(reason)) => Err(reason),
            None => Err(broken().to_string()),
            first => Ok(Self { first, ..self }),
        }
    }
}

fn broken() -> io::Error {
    io::Error::other("the tar could not be made whole")
}

impl Body for Tar {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = match self.first.take() {
            Some(piece) => Some(piece),
            None => match self.pieces.poll_recv(context) {
                Poll::Ready(piece) => piece,
                Poll::Pending => return Poll::Pending,
            },
        };
        let frame = match piece {
            Some(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Piece::End) => None,
            Some(Piece::Failed(_)) | None => Some(Err(broken())),
        };
        self.ended = true;
        Poll::Ready(frame)
    }
}
