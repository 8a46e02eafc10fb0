//! Docker's graph-driver plugin.

use crate::Door;
use crate::metrics::Meter;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use std::convert::Infallible;
use std::sync::Arc;
use vellum_store::Store;

/// Answers a request.
type Answer =
    std::pin::Pin<Box<dyn Future<Output = std::result::Result<Response<Full<Bytes>>, Infallible>> + Send>>;

/// The plugin of a door.
pub(crate) fn service(
    store: Arc<Store>,
    door: &Door,
    meter: Meter,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future = Answer,
> + Clone
+ Send
+ 'static {
    let _ = (store, door, meter);
    hyper::service::service_fn(|_request: Request<Incoming>| -> Answer {
        Box::pin(async {
            let mut response = Response::new(Full::new(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_FOUND;
            Ok(response)
        })
    })
}
