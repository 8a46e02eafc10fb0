//! Docker's graph-driver plugin, for the daemons of Docker 17 to 27.
//!
//! A thin adapter: every call is one method of [`vellum_store::Graph`], whose documentation tells what happens, and nothing is kept in memory. The daemon
//! looks for the socket in `/run/docker/plugins`, under the name of the storage driver, and wants `"experimental": true`.
//!
//! ```text
//! POST /GraphDriver.Create {"ID":…}  ──▶ messages ──▶ calls ──▶ Graph::create
//! POST /GraphDriver.ApplyDiff?id=…   body ──▶ streams: a Read ──▶ Graph::apply     (a thread of its own)
//! POST /GraphDriver.Diff {"ID":…}    body ◀── streams: a Write ◀── Graph::diff     (a thread of its own)
//! ```
//!
//! # The protocol, as real daemons speak it
//!
//! - `Host:` may be empty, there is no Content-Type, fields that are empty are left out or `null`.
//! - An error is the status 200 with `{"Err":"…"}`; but a Diff that fails answers 500, because 200 would be a tar, and one that fails
//!   midway breaks the connection, so that nobody takes what came for the whole. What is no call of the protocol is 404, what is no request
//!   400, what is larger than a request can be 413.
//! - `Init` names a folder (Home), which is recorded and not used: the store stays where it is. Options are refused, since there are none; so are
//!   id maps (`userns-remap`): layers would have to hold other owners than their archives say, could not be shared with Vellum's own
//!   images, and not be verified. A container's user namespace needs none of this.
//! - `Capabilities` promises exact diffs, so that docker keeps no copy of the archives' headers: a layer that came by ApplyDiff is given back bit
//!   for bit, and one that was written through its mount is always told in the same order and form.
//! - `Cleanup` unmounts what the daemon left mounted, but nothing that lives on in a container.
//!
//! # Threads
//!
//! What streams has a thread of its own instead of one of the server's [`crate::run`] many: a commit is a Diff whose reader is an ApplyDiff, and when
//! Diffs had all threads, none of their readers would get one. [`STREAMS`] Diffs and as many ApplyDiffs run at once; more wait.

mod calls;
mod messages;
mod streams;

use crate::Door;
use crate::metrics::Meter;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use messages::{Message, refusal};
use std::convert::Infallible;
use std::sync::Arc;
use streams::Tar;
use tokio::sync::Semaphore;
use vellum_store::{Graph, Store};

/// How many Diffs, and how many ApplyDiffs, run at once.
const STREAMS: usize = 64;

/// No call's JSON is larger.
const MOST: usize = 1 << 20;

/// A body: JSON, or a tar as it is made.
type Body = http_body_util::Either<Full<Bytes>, Tar>;

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The plugin of a door.
#[derive(Clone)]
struct Plugin {
    store: Arc<Store>,
    namespace: Arc<str>,
    meter: Meter,
    diffs: Arc<Semaphore>,
    applies: Arc<Semaphore>,
}

/// The plugin of a door, as a service.
pub(crate) fn service(
    store: Arc<Store>,
    door: &Door,
    meter: Meter,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = Answer,
> + Clone
+ Send
+ 'static {
    let plugin = Plugin {
        store,
        namespace: door.namespace().into(),
        meter,
        diffs: Arc::new(Semaphore::new(STREAMS)),
        applies: Arc::new(Semaphore::new(STREAMS)),
    };
    hyper::service::service_fn(move |request: Request<Incoming>| -> Answer {
        let plugin = plugin.clone();
        Box::pin(async move { Ok(plugin.answer(request).await) })
    })
}

impl Plugin {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Some(name) = head.uri.path().strip_prefix('/').filter(|_| head.method == Method::POST) else {
            return refusal(StatusCode::NOT_FOUND, "there is nothing but POST of the plugin protocol");
        };
        if name == "GraphDriver.ApplyDiff" {
            return self.apply(&head.uri, body).await;
        }
        let bytes = match Limited::new(body, MOST).collect().await {
            Ok(bytes) => bytes.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return refusal(StatusCode::PAYLOAD_TOO_LARGE, "the request is larger than 1 MiB");
            }
            Err(error) => return refusal(StatusCode::BAD_REQUEST, &format!("read the request: {error}")),
        };
        match Message::parse(name, &bytes) {
            None => refusal(StatusCode::NOT_FOUND, "there is no such call"),
            Some(Err(reason)) => refusal(StatusCode::BAD_REQUEST, &reason),
            Some(Ok(Message::Diff { id, parent })) => self.diff(id, parent).await,
            Some(Ok(message)) => self.call(message).await,
        }
    }

    async fn apply(self, uri: &Uri, body: Incoming) -> Response<Body> {
        let (id, parent) = match messages::layer_of_query(uri.query().unwrap_or_default()) {
            Ok(found) => found,
            Err(reason) => return refusal(StatusCode::BAD_REQUEST, &reason),
        };
        // Only closed semaphores fail, and nobody closes this one.
        let _one = self.applies.acquire().await;
        let mut reader = streams::reader(body);
        let (store, namespace) = (Arc::clone(&self.store), Arc::clone(&self.namespace));
        let applied = streams::on_a_thread(&self.meter, "apply-diff", move || {
            store.graph(&namespace).apply(&id, parent.as_deref(), &mut reader)
        });
        messages::sized(applied.await)
    }

    async fn diff(self, id: String, parent: Option<String>) -> Response<Body> {
        let permit = Arc::clone(&self.diffs).acquire_owned().await;
        let (writer, tar) = streams::tar();
        let (store, namespace) = (Arc::clone(&self.store), Arc::clone(&self.namespace));
        tokio::spawn(async move {
            let _one = permit;
            let mut out = writer.clone();
            let told = streams::on_a_thread(&self.meter, "diff", move || {
                store.graph(&namespace).diff(&id, parent.as_deref(), &mut out)?;
                out.end().map_err(|e| vellum_store::Error::io("send", "the tar", e))
            });
            if let Err(error) = told.await {
                writer.failed(error).await;
            }
        });
        match tar.begun().await {
            Ok(tar) => Response::new(Body::Right(tar)),
            Err(reason) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &reason),
        }
    }

    fn graph(&self) -> Graph<'_> {
        self.store.graph(&self.namespace)
    }
}
