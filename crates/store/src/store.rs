//! The store itself.

use crate::model::*;
use crate::{Code, Error, Result, Snapshots};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use vellum_archive::target::{LayerPath, Usage};
use vellum_driver::{Change, MountOptions};
use vellum_types::{ContainerId, ContainerName, DiffId, ImageId, ImageName, LayerId};

/// An open store. Cheap to open, and shared by many processes.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

fn pending<T>() -> Result<T> {
    Err(Error::new(Code::Unsupported, "do it", "being written"))
}

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
impl Store {
    pub fn open(options: &OpenOptions) -> Result<Self> {
        pending()
    }
    /// Takes a store off the disk whole, damaged ones too: unmounts, deletes, forgets.
    pub fn reset(options: &OpenOptions) -> Result<()> {
        pending()
    }
    /// What each driver says of this place; works without a store.
    pub fn probe_drivers(options: &OpenOptions) -> Result<Vec<DriverRow>> {
        pending()
    }
    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn info(&self) -> Result<Info> {
        pending()
    }
    pub fn drivers(&self) -> Vec<DriverRow> {
        Vec::new()
    }
    // images
    pub fn load_image(&self, input: ImageInput<'_>, progress: &dyn Progress) -> Result<LoadReport> {
        pending()
    }
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        pending()
    }
    /// By name (as the user gives it), id, or unambiguous beginning of an id (with or without `sha256:`).
    pub fn find_image(&self, reference: &str) -> Result<ImageRow> {
        pending()
    }
    pub fn image_config(&self, image: &ImageId) -> Result<Vec<u8>> {
        pending()
    }
    pub fn image_manifest(&self, image: &ImageId) -> Result<Option<Vec<u8>>> {
        pending()
    }
    /// The base first.
    pub fn image_layers(&self, image: &ImageId) -> Result<Vec<LayerRow>> {
        pending()
    }
    /// The layer's tar, bit for bit; fails at the end if its digest is not the layer's.
    pub fn layer_tar(&self, layer: LayerId, out: &mut dyn Write) -> Result<DiffId> {
        pending()
    }
    pub fn layer_blob(&self, layer: LayerId) -> Result<Option<(BlobFacts, File)>> {
        pending()
    }
    /// Gives the image a name, taking it away from another that had it.
    pub fn tag(&self, image: &ImageId, name: &ImageName) -> Result<()> {
        pending()
    }
    /// By name: takes the name away, and deletes the image with its last name. By id: deletes it if it has at most
    /// one name, or with `force`. An image with containers is not deleted, unless `force` (the layers stay until they go).
    pub fn remove_image(&self, reference: &str, force: bool) -> Result<RemoveReport> {
        pending()
    }
    pub fn import(
        &self,
        source: ImportSource<'_>,
        name: Option<&ImageName>,
        progress: &dyn Progress,
    ) -> Result<LoadReport> {
        pending()
    }
    // containers
    pub fn create_container(&self, image: &ImageId, options: CreateOptions) -> Result<ContainerId> {
        pending()
    }
    pub fn containers(&self) -> Result<Vec<ContainerRow>> {
        pending()
    }
    /// By name, id, or unambiguous beginning of an id.
    pub fn find_container(&self, reference: &str) -> Result<ContainerRow> {
        pending()
    }
    /// Measured if need be: proportional to what the container has written.
    pub fn container_usage(&self, container: &ContainerId) -> Result<Usage> {
        pending()
    }
    pub fn mount(&self, container: &ContainerId, options: &MountOptions) -> Result<PathBuf> {
        pending()
    }
    /// Releases one use of the mount, or `all`; `lazy` also when something in it is busy.
    pub fn umount(&self, container: &ContainerId, all: bool, lazy: bool) -> Result<Unmounted> {
        pending()
    }
    pub fn diff(
        &self,
        container: &ContainerId,
        visit: &mut dyn FnMut(Change, &LayerPath) -> std::io::Result<()>,
    ) -> Result<()> {
        pending()
    }
    pub fn commit(&self, container: &ContainerId, options: &CommitOptions) -> Result<ImageId> {
        pending()
    }
    pub fn snapshot(&self, container: &ContainerId, name: Option<&ContainerName>) -> Result<SavePointRow> {
        pending()
    }
    /// Save points of a container, the oldest first.
    pub fn save_points(&self, container: &ContainerId) -> Result<Vec<SavePointRow>> {
        pending()
    }
    /// Back to this save point, or to the latest. The save point stays.
    pub fn rollback(&self, container: &ContainerId, name: Option<&ContainerName>) -> Result<SavePointRow> {
        pending()
    }
    pub fn remove_save_point(&self, container: &ContainerId, name: &ContainerName) -> Result<()> {
        pending()
    }
    pub fn remove_container(&self, container: &ContainerId, force: bool) -> Result<()> {
        pending()
    }
    /// The container's whole tree as a tar.
    pub fn export(&self, container: &ContainerId, out: &mut dyn Write) -> Result<()> {
        pending()
    }
    // upkeep
    pub fn usage(&self) -> Result<Df> {
        pending()
    }
    pub fn gc(&self, dry_run: bool) -> Result<GcReport> {
        pending()
    }
    pub fn check(&self, repair: bool, progress: &dyn Progress) -> Result<Vec<Finding>> {
        pending()
    }
    /// The snapshots of a front end, such as `containerd/k8s.io`.
    pub fn snapshots(&self, namespace: &str) -> Snapshots<'_> {
        Snapshots { store: self, namespace: namespace.to_owned() }
    }
}
