//! The life of a server: see the crate's documentation.

use crate::connections::{self, Version};
use crate::metrics::{self, Metrics};
use crate::socket::{Inherited, Socket};
use crate::{Config, Door, DoorKind, Error, Result, containerd, docker};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use vellum_store::{Keeper, OpenOptions, Store};

/// How many requests do the store's work at once. Each may have a connection to the catalog, with its memory.
pub(crate) const THREADS: usize = 16;

/// How long a server that was told to stop waits for the requests that it is answering.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// Serves until SIGTERM or SIGINT. `options` tells how the store at a folder is opened; its driver is replaced by the door's.
///
/// To be called while the process has no other threads.
///
/// # Errors
/// What [`Config`] says cannot be served: nothing is, then.
pub fn serve(config: &Config, options: impl Fn(&Path) -> OpenOptions) -> Result<()> {
    config.check()?;
    let mut inherited = Inherited::take_over()?;
    let sockets = config
        .doors
        .iter()
        .map(|door| Socket::open(&door.socket, &mut inherited))
        .collect::<Result<Vec<_>>>()?;
    for path in inherited.left() {
        tracing::warn!(path, "systemd handed over a socket that no door has");
    }
    let stores = open_stores(&config.doors, options)?;
    // Two doors with different drivers have one store open twice.
    let keepers = distinct(&stores, Arc::ptr_eq)
        .iter()
        .map(|store| Keeper::start(Arc::clone(store)).map_err(Error::Store))
        .collect::<Result<Vec<_>>>()?;
    let asked = config.metrics.map(metrics::listen).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(THREADS)
        .thread_name("vellum")
        .enable_all()
        .build()
        .map_err(|e| Error::io("start", "the event loop", e))?;
    let ended = runtime.block_on(async {
        let metrics = Metrics::new();
        let every = distinct(&stores, |a, b| a.root() == b.root());
        tokio::spawn(tend_pools(every.clone()));
        if let Some(listener) = asked {
            tokio::spawn(metrics::serve(listener, metrics.clone(), every));
        }
        open_doors(&config.doors, sockets, &stores, &metrics).await
    });
    // A request that is given up may still be at work in the store; it is as if the process were killed now.
    runtime.shutdown_background();
    drop(keepers);
    ended
}

/// One of all stores that are the same.
fn distinct(stores: &[Arc<Store>], same: impl Fn(&Arc<Store>, &Arc<Store>) -> bool) -> Vec<Arc<Store>> {
    let mut every: Vec<Arc<Store>> = Vec::new();
    for store in stores {
        if !every.iter().any(|other| same(other, store)) {
            every.push(Arc::clone(store));
        }
    }
    every
}

/// How often it is looked whether a pool fills: containers write without asking anybody.
const TEND: Duration = Duration::from_secs(1);

/// Makes pools larger as they fill.
async fn tend_pools(stores: Vec<Arc<Store>>) {
    let pools: Vec<_> = stores.into_iter().filter(|store| store.data() != store.root()).collect();
    let mut last = String::new();
    while !pools.is_empty() {
        tokio::time::sleep(TEND).await;
        for store in &pools {
            let store = Arc::clone(store);
            match tokio::task::spawn_blocking(move || store.pool_tend().map(|grown| (grown, store))).await {
                Ok(Ok((true, store))) => {
                    tracing::info!(root = %store.root().display(), "the pool is larger now")
                }
                // What stays as it is, is told once.
                Ok(Err(error)) if last != error.to_string() => {
                    tracing::warn!(%error, "cannot make the pool larger");
                    last = error.to_string();
                }
                _ => {}
            }
        }
    }
}

/// A store for every door; doors that want the same share it.
fn open_stores(doors: &[Door], options: impl Fn(&Path) -> OpenOptions) -> Result<Vec<Arc<Store>>> {
    let mut open: BTreeMap<(PathBuf, Option<String>), Arc<Store>> = BTreeMap::new();
    let mut stores = Vec::with_capacity(doors.len());
    for door in doors {
        let key = (door.root.clone(), door.driver.clone());
        if !open.contains_key(&key) {
            let options = OpenOptions { driver: door.driver.clone(), ..options(&door.root) };
            let store = Store::open(&options).map_err(Error::Store)?;
            open.insert(key.clone(), Arc::new(store));
        }
        stores.extend(open.get(&key).cloned());
    }
    Ok(stores)
}

async fn open_doors(
    doors: &[Door],
    sockets: Vec<Socket>,
    stores: &[Arc<Store>],
    metrics: &Metrics,
) -> Result<()> {
    // Before any door is open: whoever finds one open may ask the server to stop.
    let failed = |e| Error::io("wait for", "signals", e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let (stop, stopped) = watch::channel(false);
    let mut served = tokio::task::JoinSet::new();
    for ((door, socket), store) in doors.iter().zip(sockets).zip(stores) {
        let namespace = door.namespace();
        tracing::info!(
            door = namespace,
            socket = %door.socket.display(),
            root = %door.root.display(),
            driver = store.driver_name(),
            "serving"
        );
        let meter = metrics.meter(&namespace);
        let store = Arc::clone(store);
        let stopped = stopped.clone();
        match door.kind {
            DoorKind::Containerd => {
                let service = containerd::service(store, door, meter);
                served.spawn(connections::serve(socket, Version::Two, service, stopped, PATIENCE))
            }
            DoorKind::Docker => {
                let service = docker::service(store, door, meter);
                served.spawn(connections::serve(socket, Version::One, service, stopped, PATIENCE))
            }
        };
    }
    tell_manager(sd_notify::NotifyState::Ready);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        // A door never ends by itself, unless it failed.
        Some(ended) = served.join_next() => {
            if let Ok(Err(error)) = ended {
                return Err(error);
            }
        }
    }
    tracing::info!("stopping");
    tell_manager(sd_notify::NotifyState::Stopping);
    let _ = stop.send(true);
    while served.join_next().await.is_some() {}
    Ok(())
}

/// Tells systemd, where it asked for it.
fn tell_manager(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
