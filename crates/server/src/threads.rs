//! A thread for a connection, and what is done on it.
//!
//! The work of a request blocks, so it belongs on threads that may. Going there and back wakes two threads, which takes longer than what most
//! requests ask for. So each connection of an engine has a thread of its own, with an event loop for nothing else:
//!
//! - While a connection has one request, that is worked on where it was read: nobody else waits there.
//! - As soon as it has several at once, or when one takes long by its nature, they go to the threads that all connections share, at most
//!   [`crate::run::THREADS`] at once. Requests that arrive while one is worked on in place wait for its end, and are
//!   then seen to be several.
//!
//! There are at most [`MOST`] such threads; further connections are served by the loop that they all come from, and never work in place.

use http::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

/// Connections with a thread of their own.
const MOST: usize = 32;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Of a connection's own thread: its requests, and the loop whose threads may block.
    static REQUESTS: Cell<usize> = const { Cell::new(0) };
    static SHARED: Cell<Option<Handle>> = const { Cell::new(None) };
}

/// Whether blocking work may be done here and now.
pub(crate) fn is_alone() -> bool {
    let own = SHARED.with(|shared| {
        let handle = shared.take();
        let own = handle.is_some();
        shared.set(handle);
        own
    });
    own && REQUESTS.get() == 1
}

/// The loop whose threads may block.
pub(crate) fn shared() -> Handle {
    SHARED.with(|shared| {
        let handle = shared.take();
        shared.set(handle.clone());
        handle.unwrap_or_else(Handle::current)
    })
}

/// One thread less when it ends, however it does.
struct Place;

impl Drop for Place {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Has a connection served to its end, on a thread of its own if there is one to be had.
pub(crate) fn serve<F>(stream: UnixStream, serve: impl FnOnce(TokioIo<UnixStream>) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let handle = Handle::current();
    if RUNNING.fetch_add(1, Ordering::Relaxed) >= MOST {
        drop(Place);
        handle.spawn(serve(TokioIo::new(stream)));
        return;
    }
    let place = Place;
    let work = move || {
        let _place = place;
        SHARED.set(Some(handle));
        let ended = event_loop().and_then(|event_loop| {
            event_loop.block_on(async {
                // It waits for its events in the loop that it came from, unless it is made anew in this one.
                let stream = UnixStream::from_std(stream.into_std()?)?;
                serve(TokioIo::new(stream)).await;
                Ok(())
            })
        });
        if let Err(error) = ended {
            tracing::warn!(%error, "a connection could not be served");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("connection".into()).spawn(work) {
        tracing::warn!(%error, "a connection could not be served");
    }
}

fn event_loop() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A service whose requests are counted from when they are read.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S>(pub(crate) S);

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Counted<S>
where
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Answering { _counted: Count::new(), work: Box::pin(self.0.call(request)) }
    }
}

/// A request that is being answered, or waits for it.
pub(crate) struct Answering<F> {
    work: Pin<Box<F>>,
    _counted: Count,
}

impl<F: Future> Future for Answering<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.work.as_mut().poll(context)
    }
}

struct Count;

impl Count {
    fn new() -> Self {
        REQUESTS.set(REQUESTS.get() + 1);
        Self
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        REQUESTS.set(REQUESTS.get().saturating_sub(1));
    }
}
