//! The calls.

use super::filter::Filters;
use super::snapshots::snapshots_server::Snapshots as Api;
use super::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use super::{ApiMount, convert, handing, labels};
use crate::Door;
use crate::metrics::Meter;
use crate::work::{self, Length};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status};
use vellum_driver::Ability;
use vellum_store::{Labels, Mapping, SnapshotKind, SnapshotRow, Snapshots, Store};

/// Snapshots of a List in one message.
const CHUNK: usize = 100;

/// Answers for one door.
#[derive(Debug)]
pub(crate) struct Service {
    door: Arc<Inner>,
    meter: Meter,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    namespace: String,
    share_images: bool,
    /// How long it takes to make a snapshot, or to find it made.
    making: Length,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub(super) fn new(store: Arc<Store>, door: &Door, meter: Meter) -> Self {
        let instant = store.capabilities().has(Ability::InstantCreate);
        let making = if instant { Length::Short } else { Length::Long };
        let door = Inner { store, namespace: door.namespace(), share_images: door.share_images, making };
        Self { door: Arc::new(door), meter }
    }

    /// Runs a call where it may block.
    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        length: Length,
        work: impl FnOnce(&Inner) -> Result<T, Status> + Send + 'static,
    ) -> Answer<T> {
        let door = Arc::clone(&self.door);
        work::blocking(&self.meter, operation, length, move || work(&door))
            .await
            .unwrap_or_else(|| {
                Err(Status::internal(format!("{operation}: the server failed; its log says where")))
            })
            .map(Response::new)
    }
}

fn told(error: vellum_store::Error) -> Status {
    convert::status(&error)
}

fn given<'a>(what: &str, text: &'a str) -> Result<&'a str, Status> {
    match text {
        "" => Err(Status::invalid_argument(format!("{what} is empty"))),
        text => Ok(text),
    }
}

fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

impl Inner {
    fn snapshots(&self) -> Snapshots<'_> {
        self.store.snapshots(&self.namespace)
    }

    fn make(
        &self,
        key: &str,
        kind: SnapshotKind,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<ApiMount>, Status> {
        given("the key", key)?;
        labels::check(labels).map_err(Status::invalid_argument)?;
        let mapping = labels::mapping(labels).map_err(Status::invalid_argument)?;
        let size = labels::max_size(labels).map_err(Status::invalid_argument)?;
        let parent = optional(parent);
        if let (true, SnapshotKind::Active, Some(target)) =
            (self.share_images, kind, labels::reference(labels))
            && self.snapshots().adopt(target, parent, labels).map_err(told)?
        {
            return Err(Status::already_exists(format!("the store has the layer {target} already")));
        }
        let row = match kind {
            SnapshotKind::View => self.snapshots().view(key, parent, labels).map_err(told)?,
            _ => {
                let size = size.filter(|_| self.store.capabilities().has(Ability::Quota));
                let options: Vec<_> =
                    size.map(|size| ("size".to_owned(), size.to_string())).into_iter().collect();
                self.snapshots().prepare_with(key, parent, labels, &options).map_err(told)?
            }
        };
        // Who unpacks a layer says which.
        if row.kind == SnapshotKind::Active && labels::reference(labels).is_some() {
            self.snapshots().expect_commit(&row);
        }
        self.hand_out(&row, mapping.as_ref()).inspect_err(|_| {
            // Nobody knows of a snapshot whose making failed.
            let _ = self.snapshots().remove(key);
        })
    }

    fn hand_out(&self, row: &SnapshotRow, mapping: Option<&Mapping>) -> Result<Vec<ApiMount>, Status> {
        if row.kind == SnapshotKind::Committed {
            let text =
                format!("the snapshot '{}' is committed: only active ones and views are mounted", row.key);
            return Err(Status::failed_precondition(text));
        }
        self.snapshots().hand_out(row, mapping).map(handing::mounts).map_err(told)
    }

    fn update(&self, request: UpdateSnapshotRequest) -> Result<SnapshotRow, Status> {
        let info =
            request.info.ok_or_else(|| Status::invalid_argument("what is to be updated is missing"))?;
        given("the name", &info.name)?;
        labels::check(&info.labels).map_err(Status::invalid_argument)?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let mut single = Vec::new();
        let mut whole = paths.is_empty();
        for path in &paths {
            match path.strip_prefix("labels.") {
                Some(name) => single.push(name.to_owned()),
                None if path == "labels" => whole = true,
                None => {
                    let text = format!("cannot update the field '{}' of a snapshot", path.escape_debug());
                    return Err(Status::invalid_argument(text));
                }
            }
        }
        self.snapshots()
            .edit(&info.name, |labels| {
                if whole {
                    labels.clone_from(&info.labels);
                    return;
                }
                for name in &single {
                    match info.labels.get(name).filter(|value| !value.is_empty()) {
                        Some(value) => labels.insert(name.clone(), value.clone()),
                        None => labels.remove(name),
                    };
                }
            })
            .map_err(told)
    }
}

#[tonic::async_trait]
impl Api for Service {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        self.call("prepare", self.door.making, move |door| {
            let mounts = door.make(&key, SnapshotKind::Active, &parent, &labels)?;
            Ok(PrepareSnapshotResponse { mounts })
        })
        .await
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        self.call("view", self.door.making, move |door| {
            let mounts = door.make(&key, SnapshotKind::View, &parent, &labels)?;
            Ok(ViewSnapshotResponse { mounts })
        })
        .await
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        self.call("mounts", self.door.making, move |door| {
            let row = door.snapshots().stat(&key).map_err(told)?;
            let mapping = labels::mapping(&row.labels).map_err(Status::failed_precondition)?;
            Ok(MountsResponse { mounts: door.hand_out(&row, mapping.as_ref())? })
        })
        .await
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        self.call("commit", Length::Long, move |door| {
            given("the name", &name)?;
            labels::check(&labels).map_err(Status::invalid_argument)?;
            let row = door.snapshots().stat(&key).map_err(told)?;
            if row.kind != SnapshotKind::Active {
                return Err(Status::failed_precondition(format!("the snapshot '{key}' is not active")));
            }
            let (snapshots, parent) = (door.snapshots(), optional(&parent));
            let committed = match labels::reference(&row.labels) {
                Some(_) => snapshots.commit_unpacked(&name, &key, parent, &labels),
                None => snapshots.commit(&name, &key, parent, &labels),
            };
            committed.map(drop).map_err(told)
        })
        .await
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.call("remove", Length::Short, move |door| door.snapshots().remove(&key).map_err(told)).await
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        self.call("stat", Length::Short, move |door| {
            let row = door.snapshots().stat(&key).map_err(told)?;
            Ok(StatSnapshotResponse { info: Some(convert::info(row)) })
        })
        .await
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let request = request.into_inner();
        self.call("update", Length::Long, move |door| {
            Ok(UpdateSnapshotResponse { info: Some(convert::info(door.update(request)?)) })
        })
        .await
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<ListSnapshotsResponse, Status>>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        self.call("list", Length::Long, move |door| {
            let filters = Filters::parse(&filters).map_err(|e| Status::new(Code::InvalidArgument, e))?;
            let mut rows = door.snapshots().walk().map_err(told)?;
            rows.retain(|row| filters.matches(row));
            let mut chunks = Vec::with_capacity(rows.len().div_ceil(CHUNK));
            let mut rows = rows.into_iter().map(convert::info).peekable();
            while rows.peek().is_some() {
                chunks.push(Ok(ListSnapshotsResponse { info: rows.by_ref().take(CHUNK).collect() }));
            }
            Ok(tokio_stream::iter(chunks))
        })
        .await
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        self.call("usage", Length::Long, move |door| {
            let usage = door.snapshots().usage(&key).map_err(told)?;
            let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            Ok(UsageResponse { size: signed(usage.bytes), inodes: signed(usage.inodes) })
        })
        .await
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.call("cleanup", Length::Long, |door| door.snapshots().cleanup().map_err(told)).await
    }
}
