//! What the store's methods take and give.

use jiff::Timestamp;
use serde::Serialize;
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use vellum_archive::XattrForm;
use vellum_archive::target::{LayerPath, Usage};
use vellum_driver::{Capabilities, Probe};
use vellum_types::{
    ChainId, ContainerId, ContainerName, DiffId, Digest, ImageId, ImageName, LayerId, Platform,
};

/// Below how much free space loads and other big writes are refused, so that the catalog and running containers
/// keep room to breathe: the larger of `bytes` and `permille` of the file system, but never more than half of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// So many bytes.
    pub bytes: u64,
    /// So many thousandths of the file system's bytes.
    pub permille: u32,
    /// So many inodes, where the file system counts them.
    pub inodes: u64,
}

impl Default for Floor {
    /// 256 MiB or 1 %, and 1000 inodes.
    fn default() -> Self {
        Self { bytes: 256 << 20, permille: 10, inodes: 1000 }
    }
}

impl Floor {
    /// In bytes, on a file system.
    pub(crate) fn of(&self, fs: &vellum_sys::fsinfo::FileSystem) -> u64 {
        let share = fs.total_bytes / 1000 * u64::from(self.permille);
        self.bytes.max(share).min(fs.total_bytes / 2)
    }

    /// No floor at all.
    pub const NONE: Self = Self { bytes: 0, permille: 0, inodes: 0 };
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The store's folder.
    pub root: PathBuf,
    /// The folder for what does not outlive a reboot; `None` for the usual place.
    pub runtime: Option<PathBuf>,
    /// The storage driver; `None` for the one used before, or the best that works here.
    pub driver: Option<String>,
    /// Make a store where there is none.
    pub create: bool,
    /// Change nothing: no recovery either.
    pub read_only: bool,
    /// The store's user has no privileges on the host: it works inside a user namespace. `None` to find out.
    pub rootless: Option<bool>,
    /// The arguments with which this executable, started again and detached, empties the trash: it must call
    /// [`crate::trash::work`]. `None`: what is removed is deleted before the call returns.
    pub worker: Option<Vec<OsString>>,
    /// The floor of free space.
    pub floor: Floor,
    /// How many layers are unpacked at once; `None` for the number of processors, two to four.
    pub workers: Option<usize>,
    /// A new store has the kernel verify what is read of files, where driver and file system can (fs-verity). A store that is there stays as it was made.
    pub verity: bool,
}

impl OpenOptions {
    /// The store at `root`, made if need be.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            runtime: None,
            driver: None,
            create: true,
            read_only: false,
            rootless: None,
            worker: None,
            floor: Floor::default(),
            workers: None,
            verity: true,
        }
    }
}

/// What a blob's descriptor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlobFacts {
    /// Of the blob as it came (compressed, mostly). Verified while loading when it is given.
    pub digest: Option<Digest>,
    /// Its bytes, when known. Verified while loading when given.
    pub size: Option<u64>,
    /// The descriptor's media type, when there was one.
    pub media_type: Option<String>,
}

/// One layer of an image that is to be loaded: a tar, plain or compressed (told by its content).
pub trait LayerSource: Sync + Send {
    /// Its bytes from the beginning. May be called more than once, and not at all for a layer that the store has.
    ///
    /// # Errors
    /// The file system's.
    fn open(&self) -> std::io::Result<Box<dyn Read + Send>>;

    /// What is known of the blob.
    fn blob(&self) -> Option<BlobFacts> {
        None
    }
}

/// An image that is to be loaded.
pub struct ImageInput<'a> {
    /// The configuration, byte for byte; the image's id is its digest.
    pub config: Vec<u8>,
    /// As many as the configuration has `rootfs.diff_ids`, the base first.
    pub layers: Vec<Box<dyn LayerSource + 'a>>,
    /// The names the image gets; taken away from the images that had them.
    pub names: Vec<ImageName>,
    /// The manifest it came with, byte for byte.
    pub manifest: Option<Vec<u8>>,
    /// Keep the compressed blobs beside the unpacked layers.
    pub keep_blobs: bool,
}

/// What became of one layer of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerOutcome {
    /// Unpacked now.
    Unpacked,
    /// The store had it, or another process unpacked it meanwhile.
    Shared,
}

/// Told how long work goes on. Every method may be called from several threads.
pub trait Progress: Sync {
    /// Work on the layer at this place begins (or on the object, for a check); `bytes` of input if known.
    fn layer_started(&self, index: usize, label: &str, bytes: Option<u64>) {
        let _ = (index, label, bytes);
    }

    /// So many more bytes of it were read.
    fn bytes(&self, index: usize, more: u64) {
        let _ = (index, more);
    }

    /// It is done.
    fn layer_done(&self, index: usize, outcome: LayerOutcome) {
        let _ = (index, outcome);
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// An entry of a layer that could not be kept as it is, such as a device for a user without privileges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The layer it is in.
    pub diff_id: DiffId,
    /// The entry.
    pub path: LayerPath,
    /// Why.
    pub reason: String,
}

/// What a load did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// The image.
    pub id: ImageId,
    /// The names it got.
    pub names: Vec<ImageName>,
    /// Layers unpacked now.
    pub layers_new: usize,
    /// Layers the store had, or that another process unpacked meanwhile.
    pub layers_shared: usize,
    /// Bytes of tar unpacked now.
    pub bytes_unpacked: u64,
    /// What could not be kept as it is.
    pub left_out: Vec<LeftOut>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRow {
    /// The digest of its configuration.
    pub id: ImageId,
    /// Its names, sorted; possibly none.
    pub names: Vec<ImageName>,
    /// When it was made, as its configuration says.
    pub created: Option<Timestamp>,
    /// Bytes on disk of all of its layers.
    pub size: u64,
    /// Of these, in layers that other images have too.
    pub shared: u64,
    /// Of these, in layers that no other image has: what removing the image gives back (when no container is on it).
    pub unique: u64,
    /// What machine it is for.
    pub platform: Option<Platform>,
    /// The number of its layers.
    pub layers: usize,
    /// The number of containers made of it.
    pub containers: usize,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerRow {
    /// Its id on disk.
    pub id: LayerId,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// It and all layers below it.
    pub chain_id: ChainId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// What it takes on disk by itself.
    pub size: Usage,
    /// The bytes of its tar.
    pub tar_size: u64,
    /// The blob it came in, if it was kept.
    pub blob: Option<BlobFacts>,
    /// When it was unpacked or made.
    pub created: Timestamp,
}

/// How a container is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Its name; none when not given.
    pub name: Option<ContainerName>,
    /// Storage options for the driver, as (name, value).
    pub storage: Vec<(String, String)>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerRow {
    /// Its id.
    pub id: ContainerId,
    /// Its name, if it has one.
    pub name: Option<ContainerName>,
    /// The image it was made of.
    pub image: ImageId,
    /// The name by which the image is known now, if it has one.
    pub image_name: Option<ImageName>,
    /// The driver that keeps it.
    pub driver: String,
    /// Its own layer on disk.
    pub layer: LayerId,
    /// When it was made.
    pub created: Timestamp,
    /// Where it is mounted, if it is.
    #[serde(serialize_with = "vellum_types::optional_path_as_text")]
    pub mounted: Option<PathBuf>,
    /// What its own layer takes on disk; `None` when it is not known without measuring.
    pub size: Option<Usage>,
    /// The number of its save points.
    pub save_points: usize,
}

/// What an unmount did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Unmounted {
    /// The mount is gone; false when others still use it, or when there was none.
    pub unmounted: bool,
    /// How many still use it.
    pub left: u32,
}

/// How a container becomes an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// The new image's name.
    pub name: Option<ImageName>,
    /// Who made it.
    pub author: Option<String>,
    /// Why.
    pub message: Option<String>,
    /// Changes of the configuration as lines of a Dockerfile: `CMD ["/bin/sh"]`, `ENV A=b`, `LABEL`, `USER`,
    /// `WORKDIR`, `ENTRYPOINT`, `EXPOSE`, `VOLUME`, `STOPSIGNAL`.
    pub changes: Vec<String>,
}

/// A save point of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SavePointRow {
    /// Whose.
    pub container: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// Its layer on disk.
    pub layer: LayerId,
    /// When it was made.
    pub created: Timestamp,
    /// What it takes on disk by itself (shared blocks of a reflink file system count).
    pub size: Usage,
}

/// What removing an image did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RemoveReport {
    /// Names taken away.
    pub untagged: Vec<ImageName>,
    /// The image, when it is gone.
    pub deleted: Option<ImageId>,
    /// Layers that are gone with it.
    pub layers: usize,
    /// Bytes they took.
    pub bytes: u64,
}

/// What a new image is made of.
pub enum ImportSource<'a> {
    /// A tar, plain or compressed.
    Tar(Box<dyn Read + Send + 'a>),
    /// A folder.
    Folder(PathBuf),
}

/// One line of [`Df`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DfLine {
    /// How many.
    pub count: usize,
    /// How many of them are in use.
    pub active: usize,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Of these, what `gc` and removing unused ones would give back.
    pub reclaimable: u64,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Df {
    /// Layers of images, each counted once; active are images with containers.
    pub images: DfLine,
    /// Containers' own layers; active are mounted ones.
    pub containers: DfLine,
    /// Save points.
    pub save_points: DfLine,
    /// Kept compressed blobs.
    pub blobs: DfLine,
    /// Layers held by other front ends.
    pub snapshots: DfLine,
    /// Layers that nothing needs any more; `gc` takes them.
    pub unused: DfLine,
    /// What waits in the trash (its entries; their bytes are not counted).
    pub trash: DfLine,
    /// The catalog, configurations, recipes and manifests.
    pub metadata: DfLine,
}

/// One thing that a garbage collection takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GcItem {
    /// `layer`, `folder`, `blob`, `config`, `cache`, `temporary`, `mountpoint`, `trash`, `lock`.
    pub kind: &'static str,
    /// Which.
    pub object: String,
    /// Why nothing needs it.
    pub reason: String,
    /// What it takes on disk.
    pub bytes: u64,
}

/// What a garbage collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Item by item.
    pub items: Vec<GcItem>,
    /// The sum of the items' bytes.
    pub bytes: u64,
    /// Bytes that the host of a pool has back; `None` without a pool, and when nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trimmed: Option<u64>,
    /// Nothing was done.
    pub dry_run: bool,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable: see [`crate::FINDINGS`].
    pub id: &'static str,
    /// What it is about: `layer 1f`, `image sha256:…`, `catalog`.
    pub object: String,
    /// The file, inside the layer or in the store, if it is about one.
    pub path: Option<String>,
    /// What is wrong, in a sentence.
    pub detail: String,
    /// What was done about it.
    pub repaired: Option<String>,
    /// Why it was not repaired, when that was tried.
    pub not_repaired: Option<String>,
    /// What the user can do, when nothing was done.
    pub hint: Option<String>,
}

/// What a store is and does.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// Its folder.
    #[serde(serialize_with = "vellum_types::path_as_text")]
    pub root: PathBuf,
    /// The folder for what does not outlive a reboot.
    #[serde(serialize_with = "vellum_types::path_as_text")]
    pub runtime: PathBuf,
    /// Its name for all time.
    pub uuid: String,
    /// The driver in use.
    pub driver: String,
    /// Why this one.
    pub driver_reason: String,
    /// The driver's own facts, in order.
    pub status: Vec<(String, String)>,
    /// The driver's abilities.
    pub capabilities: Capabilities,
    /// The catalog's format.
    pub format: u32,
    /// Where overlay's attributes are.
    pub xattrs: XattrForm,
    /// Works without privileges of the host.
    pub rootless: bool,
    /// Why it can only be read, if so.
    pub read_only: Option<String>,
    /// Images.
    pub images: usize,
    /// Containers.
    pub containers: usize,
    /// Containers that are mounted.
    pub mounted: usize,
    /// Layers of images.
    pub layers: usize,
    /// Save points of containers.
    pub save_points: usize,
    /// How its pool stands, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<crate::PoolStatus>,
}

/// A driver, whether it works here, and what it can do.
#[derive(Debug, Clone, Serialize)]
pub struct DriverRow {
    /// Its name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// What it is good for.
    pub summary: &'static str,
    /// Whether it works here, and why.
    pub probe: Probe,
    /// In use by this store.
    pub selected: bool,
    /// What it can do, when it is open.
    pub capabilities: Option<Capabilities>,
}
