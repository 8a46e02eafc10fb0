//! Counts and times of what is served, for Prometheus.
//!
//! | metric | labels | |
//! |---|---|---|
//! | `vellum_operations_total` | door, operation, result (`ok`, `error`) | requests answered |
//! | `vellum_operation_seconds` | door, operation | how long they took, as a histogram |
//! | `vellum_store_layers`, `_containers`, `_images` | root | what the store has |
//! | `vellum_store_bytes` | root, kind (`images`, `containers`, `snapshots`, `metadata`, `unused`) | what it takes on disk |
//! | `vellum_fs_bytes` | root, kind (`total`, `free`) | the file system below it; of a store in a pool, the pool's |
//! | `vellum_pool_bytes` | root, kind (`size`, `allocated`, `used`, `free`, `host_free`, `missing`) | the pool: its file and what that takes on the host, what is used and free in it, what the host has free, and what the pool promises beyond that |
//! | `vellum_pool_failed` | root | 1 when the pool's file system has failed |
//!
//! The store is asked when Prometheus asks, and not more often than every [`FRESH`]. Served over HTTP at `/metrics` of an address that the configuration names,
//! without authentication: an address of the loopback interface, mostly.

use crate::{Error, Result};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vellum_store::Store;
use vellum_sys::fsinfo::FileSystem;

/// Figures of the store are not asked for more often.
const FRESH: Duration = Duration::from_secs(10);

/// From a tenth of a millisecond to a minute.
const BUCKETS: [f64; 14] =
    [0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 5.0, 20.0, 60.0];

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Counted {
    door: String,
    operation: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Timed {
    door: String,
    operation: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfStore {
    root: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindOfStore {
    root: String,
    kind: &'static str,
}

type Times = Family<Timed, Histogram, fn() -> Histogram>;

/// All that is counted.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    operations: Family<Counted, Counter>,
    seconds: Times,
    layers: Family<OfStore, Gauge>,
    containers: Family<OfStore, Gauge>,
    images: Family<OfStore, Gauge>,
    bytes: Family<KindOfStore, Gauge>,
    fs: Family<KindOfStore, Gauge>,
    pool: Family<KindOfStore, Gauge>,
    pool_failed: Family<OfStore, Gauge>,
    asked: Arc<Mutex<Option<Instant>>>,
}

/// Counts for one door.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    metrics: Metrics,
    door: String,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("vellum");
        let seconds: Times = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let mut metrics = Self {
            registry: Arc::default(),
            operations: Family::default(),
            seconds,
            layers: Family::default(),
            containers: Family::default(),
            images: Family::default(),
            bytes: Family::default(),
            fs: Family::default(),
            pool: Family::default(),
            pool_failed: Family::default(),
            asked: Arc::default(),
        };
        registry.register("operations", "Requests answered", metrics.operations.clone());
        registry.register_with_unit(
            "operation",
            "How long requests took",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register("store_layers", "Layers that are ready", metrics.layers.clone());
        registry.register("store_containers", "Containers", metrics.containers.clone());
        registry.register("store_images", "Images", metrics.images.clone());
        registry.register("store_bytes", "What the store takes on disk, by kind", metrics.bytes.clone());
        registry.register("fs_bytes", "The file system that the store is on", metrics.fs.clone());
        registry.register("pool_bytes", "The store's pool", metrics.pool.clone());
        registry.register("pool_failed", "Whether the pool has failed", metrics.pool_failed.clone());
        metrics.registry = Arc::new(registry);
        metrics
    }

    pub(crate) fn meter(&self, door: &str) -> Meter {
        Meter { metrics: self.clone(), door: door.to_owned() }
    }

    /// Asks the stores for their figures.
    fn refresh(&self, stores: &[Arc<Store>]) {
        let mut asked = self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if asked.is_some_and(|asked| asked.elapsed() < FRESH) {
            return;
        }
        for store in stores {
            if let Err(error) = self.ask(store) {
                tracing::warn!(%error, "cannot tell the store's figures");
            }
        }
        *asked = Some(Instant::now());
    }

    fn ask(&self, store: &Store) -> vellum_store::Result<()> {
        let root = store.root().display().to_string();
        let set = |family: &Family<OfStore, Gauge>, value: usize| {
            family.get_or_create(&OfStore { root: root.clone() }).set(value.try_into().unwrap_or(i64::MAX));
        };
        let bytes = |family: &Family<KindOfStore, Gauge>, kind, value: u64| {
            let labels = KindOfStore { root: root.clone(), kind };
            family.get_or_create(&labels).set(value.try_into().unwrap_or(i64::MAX));
        };
        let info = store.info()?;
        set(&self.layers, info.layers);
        set(&self.containers, info.containers);
        set(&self.images, info.images);
        let usage = store.usage()?;
        for (kind, line) in [
            ("images", &usage.images),
            ("containers", &usage.containers),
            ("snapshots", &usage.snapshots),
            ("metadata", &usage.metadata),
            ("unused", &usage.unused),
        ] {
            bytes(&self.bytes, kind, line.bytes);
        }
        if let Ok(fs) = FileSystem::at(store.data()) {
            bytes(&self.fs, "total", fs.total_bytes);
            bytes(&self.fs, "free", fs.free_bytes);
        }
        if let Some(pool) = &info.pool {
            for (kind, value) in [
                ("size", pool.size),
                ("allocated", pool.allocated),
                ("used", pool.used.unwrap_or(0)),
                ("free", pool.free.unwrap_or(0)),
                ("host_free", pool.host_free),
                ("missing", pool.missing),
            ] {
                bytes(&self.pool, kind, value);
            }
            set(&self.pool_failed, usize::from(pool.failure.is_some()));
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Meter {
    pub(crate) fn door(&self) -> &str {
        &self.door
    }

    pub(crate) fn done(&self, operation: &'static str, took: Duration) {
        self.count(operation, "ok", took);
    }

    pub(crate) fn failed(&self, operation: &'static str, took: Duration) {
        self.count(operation, "error", took);
    }

    fn count(&self, operation: &'static str, result: &'static str, took: Duration) {
        let counted = Counted { door: self.door.clone(), operation, result };
        self.metrics.operations.get_or_create(&counted).inc();
        let timed = Timed { door: self.door.clone(), operation };
        self.metrics.seconds.get_or_create(&timed).observe(took.as_secs_f64());
    }
}

/// Takes the address.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener> {
    let failed = |e| Error::io("listen on", address.to_string(), e);
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Answers Prometheus, as long as the server lives.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics, stores: Vec<Arc<Store>>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (metrics, stores) = (metrics.clone(), stores.clone());
        let service =
            hyper::service::service_fn(move |request| answer(request, metrics.clone(), stores.clone()));
        tokio::spawn(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // One that asks and then says nothing is not waited for for ever.
            let _ = tokio::time::timeout(Duration::from_secs(60), connection).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: Metrics,
    stores: Vec<Arc<Store>>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let reply = |status: StatusCode, kind: &'static str, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        response
    };
    if request.uri().path() != "/metrics" || request.method() != Method::GET {
        return Ok(reply(StatusCode::NOT_FOUND, "text/plain", "there is only GET /metrics\n".into()));
    }
    let text = tokio::task::spawn_blocking(move || {
        metrics.refresh(&stores);
        metrics.text()
    })
    .await
    .unwrap_or_default();
    Ok(reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text))
}
