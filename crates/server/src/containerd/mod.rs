//! containerd's proxy snapshotter: its snapshots service over gRPC.
//!
//! containerd keeps its own records of snapshots (names in its namespaces, leases, what an image needs) and asks this service, under keys of its making such as
//! `k8s.io/41/sha256:…`, for what lies on disk. So namespaces, leases and garbage collection stay containerd's: what it does not need
//! any more it removes here, and `Cleanup` follows.
//!
//! | call | here |
//! |---|---|
//! | Prepare, View | a layer and a row, in one durable transaction; its mounts |
//! | Mounts | what containerd mounts by itself ([`handing`]) |
//! | Commit | durable; with `parent` the layer is joined to a parent that was not known before (capability `rebase`) |
//! | Remove | recorded durably; the space comes back soon after |
//! | Stat, Update, List | rows; [`filter`] has containerd's filter language |
//! | Usage | as recorded for committed snapshots; measured for active ones |
//! | Cleanup | works the trash off |
//!
//! # Labels
//!
//! | label | effect |
//! |---|---|
//! | `containerd.io/snapshot/max-size` | the size limit of an active snapshot, where the driver can; not heeded where it cannot, as everywhere else |
//! | `containerd.io/snapshot/uidmapping`, `gidmapping` | `container:host:size`, several joined by commas: the mounts carry `uidmap=` and `gidmap=`, for which containerd (2.0 and later) maps the lower layers' owners, or, with composefs, the server has mapped them already; the snapshot's own root belongs to the mapped root. containerd has to be told so (the capability `remap-ids`): otherwise it changes all owners in a copy of the image, and says the labels all the same |
//! | `containerd.io/snapshot.ref` | an archive is unpacked into the snapshot: a parent that is named at commit gives its directories' attributes to those that the archive leaves out. With `share-images`: the chain ID under which the unpacked layer will be known. If the store has it, it becomes the snapshot at once, and the answer is `ALREADY_EXISTS`, after which containerd looks for it by List |
//!
//! All labels are kept and given back, as containerd wants it.

mod convert;
mod filter;
mod handing;
mod labels;
mod service;
#[cfg(test)]
mod tests;

use crate::Door;
use crate::metrics::Meter;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use vellum_store::Store;

/// containerd's messages and calls, as `proto/` has them.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::all, rustdoc::all)]
mod api {
    pub(crate) mod types {
        tonic::include_proto!("containerd.types");
    }
    pub(crate) mod services {
        pub(crate) mod snapshots {
            pub(crate) mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}

use api::services::snapshots::v1 as snapshots;
use api::types::Mount as ApiMount;

/// A request is not larger than this; containerd's own limit is the same.
const LARGEST: usize = 16 << 20;

/// The service as HTTP/2 wants it.
pub(crate) type Grpc = TowerToHyperService<snapshots::snapshots_server::SnapshotsServer<service::Service>>;

/// The service of a door.
pub(crate) fn service(store: Arc<Store>, door: &Door, meter: Meter) -> Grpc {
    let service = service::Service::new(store, door, meter);
    TowerToHyperService::new(
        snapshots::snapshots_server::SnapshotsServer::new(service).max_decoding_message_size(LARGEST),
    )
}
