//! Accepts connections and serves each with HTTP, until the server stops.

use crate::socket::Socket;
use crate::threads::{self, Counted};
use crate::{Error, Result};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Which HTTP a door speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// gRPC's.
    Two,
    /// Everything else's.
    One,
}

/// How many streams of one connection are open at once; a client with more waits.
const STREAMS: u32 = 256;

/// Serves a socket until `stop` says so or its sender is gone; then waits for the requests that are being answered.
pub(crate) async fn serve<S, B>(
    socket: Socket,
    version: Version,
    service: S,
    mut stop: watch::Receiver<bool>,
    patience: Duration,
) -> Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Cause>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Cause>,
{
    let failed = |e| Error::io("listen on", "the socket", e);
    let listener = socket.listener.try_clone().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Mostly too many open files: those that are open end some time, and the rest wait in the queue.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = stopped(&mut stop) => break,
        };
        let service = service.clone();
        match version {
            Version::Two => {
                let watcher = graceful.watcher();
                threads::serve(stream, |stream| async move {
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS);
                    ended(watcher.watch(builder.serve_connection(stream, Counted(service))).await);
                });
            }
            Version::One => {
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(TokioTimer::new());
                let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
                tokio::spawn(async move { ended(connection.await) });
            }
        }
    }
    drop(listener);
    // The name goes now, so that nobody connects to a server that does not listen any more.
    drop(socket);
    if tokio::time::timeout(patience, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests that were still being answered are given up");
    }
    Ok(())
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn ended(result: hyper::Result<()>) {
    // A client that goes away in the middle is no news.
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
