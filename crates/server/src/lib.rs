//! Vellum behind the doors of the engines that people have.
//!
//! One process serves any number of *doors*, each a unix socket in front of a store: the proxy snapshotter of containerd ([`containerd`]),
//! through which Docker from 29 on, nerdctl, BuildKit and Kubernetes run on it, and the graph-driver plugin of Docker up to 27 ([`docker`]).
//! Each is a thin adapter: what it is asked it does with [`vellum_store::Snapshots`], and keeps nothing of its own in memory, so that a server that
//! is killed and started again goes on where it was.
//!
//! ```text
//! crates/server/
//!   proto/             containerd's interface, from which build.rs makes messages and calls
//!   samples/           configurations for containerd, docker and systemd
//!   src/
//!     config.rs        what to serve: from the command line or a file
//!     socket.rs        the socket: inherited from systemd, or made, 0600
//!     run.rs           opens the stores, serves the doors, ends well
//!     connections.rs   accepts, and hands over to HTTP/1 or HTTP/2
//!     threads.rs       a connection's own thread, and when it works by itself
//!     work.rs          blocking work of a request, where it may block
//!     metrics.rs       counts and times, for Prometheus
//!     containerd/      door one
//!     docker/          door two
//!   tests/             the doors from outside; tests/go: the engines' own suites
//! ```
//!
//! # Life of a server
//!
//! 1. Every store is opened (which recovers what an earlier server, or any other process, left behind), every socket is taken. If one fails, nothing is
//!    served, and the error says which.
//! 2. Readiness is told to systemd, if it asked for it.
//! 3. Each connection has a thread ([`threads`]). The store's work of a request runs there as long as it is the only one, else on threads that all
//!    share, at most [`run::THREADS`] at once: more requests wait, and none is refused.
//! 4. SIGTERM or SIGINT: no more connections are taken, those that are open end their requests within [`run::PATIENCE`], sockets that this process made
//!    are removed. Mounts stay: containers live on without the server. What removals left to do is done before the end.
//!
//! A kill at any moment is as the end of any other process of the store: what was answered is durable, what was not is rolled back
//! by the next open (the store's table tells when).
//!
//! # Locks
//!
//! A socket has a lock file beside it (`<socket>.lock`), held as long as the server lives: two servers never fight for a socket, and a socket
//! without a server is known to be stale. The store's own locks are below.

#![allow(rustdoc::private_intra_doc_links)]

pub mod config;
mod connections;
pub mod containerd;
pub mod docker;
mod error;
mod metrics;
mod run;
mod socket;
mod threads;
mod work;

pub use config::{Config, Door, DoorKind};
pub use error::{Error, Result};
pub use run::serve;
