//! The contract of Vellum's storage drivers.
//!
//! A *driver* keeps layers on disk and says how to mount them. It is the part of a container engine that makes
//! a container cost nothing until it writes. This crate holds what all drivers share: the trait [`Driver`], its
//! errors, capabilities as data, mount plans, the generic diff, probing and selection. It holds no driver.
//!
//! # Model
//!
//! A **layer** is a set of changes to a tree, named by a [`LayerId`]. It has at most one **parent**, which
//! never changes once set; following parents gives its **chain**, and laying the chain's changes over each
//! other, base first, gives its **tree**. A layer is of one [`Kind`]:
//!
//! ```text
//!                    create(Active, parent?)                 commit(parent?)
//!        (nothing) ───────────────────────────▶ active ───────────────────────▶ committed
//!            │                                   │ ▲                              │  ▲
//!            │ create(View, parent)              │ └ mounted, written, copied     │  └ parent of others
//!            └──────────────────────▶ view ──────┴───────────── remove ───────────┴──▶ (nothing)
//! ```
//!
//! - **active**: may change, through a mount or a [`Target`]. Nothing can lie on top.
//!   A container's layer is active all its life.
//! - **committed**: never changes again. Only committed layers are parents.
//! - **view**: a read-only look at its parent, with no content of its own.
//!
//! An active layer never becomes a view, a view never an active layer, and a committed layer stays what it
//! is until it is removed. A layer that is some layer's parent cannot be removed; that is the caller's to
//! keep (the store's catalog knows who lies on whom), and a driver answers [`ErrorKind::InUse`] where it can tell.
//!
//! A driver does not know images, containers, names, digests or reference counts, and has no catalog: all
//! that it must remember of a layer (its parent, its kind) lies in the layer's own folder, so that a lost
//! catalog can be rebuilt from [`Driver::walk`]. It performs no mount: it *describes* it ([`MountPlan`]), and the
//! one mounter performs, counts and undoes it.
//!
//! # Two families of callers, one trait
//!
//! | classic graph driver | containerd snapshotter | here |
//! |---|---|---|
//! | String | (plugin id) | [`Driver::name`] |
//! | Create, CreateReadWrite | Prepare, View | [`Driver::create`] |
//! | ApplyDiff | (the client unpacks through Mounts) | [`Driver::target`], then [`Driver::commit`] |
//! | (implicit) | Commit, also with `parent` (rebase) | [`Driver::commit`] |
//! | Get, Put | Mounts | [`Driver::mounts`], and the mounter's `acquire` and `release` |
//! | Remove | Remove | [`Driver::remove`] |
//! | Exists, GetMetadata | Stat | [`Driver::stat`], [`Driver::metadata`] |
//! | (none) | Walk | [`Driver::walk`] |
//! | Diff, Changes | (the client's differ) | [`Driver::diff`] into a [`DiffSink`] |
//! | DiffSize | Usage | [`Driver::usage`] |
//! | Status | (plugin exports) | [`Driver::status`] |
//! | Cleanup | Cleanup, Close | [`Driver::cleanup`] |
//! | mount label, storage options | labels | [`MountOptions::label`], [`CreateSpec::options`] |
//!
//! # Worked examples
//!
//! *An image of three layers is unpacked, in parallel.* For each layer: `create(id, Active, no parent)`, `target(id)`,
//! feed the tar. When all are done, in order: `commit(a, None)`, `commit(b, Some(a))`, `commit(c, Some(b))`: each joins
//! the layer to its parent. A driver without [`Ability::ParallelUnpack`] is given the parent at create, one
//! layer after the other.
//!
//! *A container.* `create(x, Active, parent c)`; the mounter performs `mounts(x)`; the container runs and
//! writes; the mounter releases. `diff(x)` says what changed; nothing else did. `remove(x)`.
//!
//! *A container becomes an image.* `diff(x)` into a sink that writes a tar, hashes it and feeds the `target` of a new
//! active layer; `commit(new, Some(c))`. The container goes on. What the tar's files are read from is asked of `twin(x, …)`, and the target may keep that.
//!
//! *A save point.* `copy(x, y)`, while x may be mounted but frozen. *Going back:* `copy(y, z)`, the container's layer
//! becomes z, `remove(x)`.
//!
//! # Durability and failure
//!
//! No method syncs; the caller makes a barrier (one `syncfs` for a load, or [`Driver::sync`] for a small
//! change) before it records the result. A method that fails leaves the layer it was to make absent or
//! removable by [`Driver::remove`], and every other layer as it was. After a power cut a layer that the
//! caller had not recorded may be in any state, and `remove` must still take it away.
//!
//! Every method may be called from many threads and many processes at once, for different layers. For one
//! layer, the caller holds the layer's lock.

mod capability;
mod diff;
mod error;
pub mod home;
mod plan;
mod select;
pub mod sinks;

pub use capability::{Ability, Capabilities, Capability, Support};
pub use diff::{
    Candidates, Change, DiffEntry, DiffSink, Guide, Standing, generic_diff, guided_diff, narrowed_diff,
};
pub use error::{Error, ErrorKind, Result};
pub use plan::{
    ClassicMount, Device, Mount, MountOption, MountPlan, MountSource, Owners, PathRef, Step, View, Views,
};
pub use select::{
    Factory, PRIORITY_CLASSIC_FREEBSD, PRIORITY_CLASSIC_LINUX, PRIORITY_CLASSIC_WINDOWS, PRIORITY_TODAY,
    Probe, ProbeEnvironment, Selection, find_factory, select,
};

use std::fs::File;
use std::path::Path;
use vellum_archive::target::{Joints, LayerPath, Target, Usage};
use vellum_types::{LayerId, Size};

/// What a layer is. See the crate's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// May change.
    Active,
    /// A read-only look at its parent.
    View,
    /// Never changes again.
    Committed,
}

/// What a driver itself knows of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// The layer.
    pub id: LayerId,
    /// What it is.
    pub kind: Kind,
    /// The layer below, once it is known.
    pub parent: Option<LayerId>,
}

/// How a layer is to be made.
#[derive(Debug, Clone, Default)]
pub struct CreateSpec<'a> {
    /// The committed layer below; `None` for a base, or when it is named only at commit.
    pub parent: Option<LayerId>,
    /// A read-only look at `parent` instead of an active layer.
    pub view: bool,
    /// Storage options of this layer as (name, value), such as (`size`, `10737418240`). A driver refuses
    /// what it does not know with [`ErrorKind::Unsupported`].
    pub options: &'a [(String, String)],
}

impl CreateSpec<'_> {
    /// The size limit that the options ask for, for a driver that has no other option.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: there is another option; [`ErrorKind::Invalid`]: it is no size, or is asked for a view.
    pub fn size(&self, driver: &str, id: LayerId) -> Result<Option<Size>> {
        let fail = |kind, reason| Err(Error::new(kind, "create", reason).layer(id));
        let mut size = None;
        for (name, value) in self.options {
            if name != "size" {
                let reason = format!("{driver} has no storage option '{}'", name.escape_debug());
                return fail(ErrorKind::Unsupported, reason);
            }
            match value.parse::<Size>() {
                Ok(parsed) => size = Some(parsed),
                Err(error) => return fail(ErrorKind::Invalid, format!("storage option size: {error}")),
            }
        }
        if self.view && size.is_some() {
            return fail(ErrorKind::Invalid, "a view takes no room that could be limited".into());
        }
        Ok(size)
    }
}

/// How a layer is to be mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MountOptions {
    /// Without a writable top, whatever the layer is.
    pub read_only: bool,
    /// A SELinux context for every file of the mount.
    pub label: Option<String>,
    /// Give up durability of the container's writes for speed (`volatile` of overlayfs): after a crash the layer must
    /// be thrown away. Only ever on the user's request.
    pub volatile: bool,
    /// Somebody else performs the mount, who may change its options and read the folder with the container's changes by himself (BuildKit
    /// does both): every changed file must be whole there, or the plan says that only the mounter performs it ([`MountPlan::by_mounter`]).
    #[serde(default)]
    pub by_others: bool,
}

/// What a store tells a driver when it opens it. Recorded with the store: it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DriverConfig {
    /// The namespace of overlay's attributes in this store: `trusted.` as root, `user.` in a user namespace.
    pub xattrs: vellum_archive::XattrForm,
    /// The store belongs to a user without privileges: device nodes are left out, and owners that the user
    /// namespace cannot hold are recorded in an attribute instead.
    pub rootless: bool,
    /// A driver that can have the kernel verify what is read of files (fs-verity) does so where the file system can. A driver's home stays as it was made.
    pub verity: bool,
}

/// Whether a call found something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Changed {
    /// It did.
    Yes,
    /// All was already so.
    No,
}

/// A storage driver. The crate's documentation tells the model, the lifecycle and the promises that hold for every
/// method.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// The name users know it by, such as `overlay`. For showing and recording only: code that wants to know what a
    /// driver can do asks [`Driver::capabilities`].
    fn name(&self) -> &'static str;

    /// The folder it owns. Everything a driver keeps lies in it.
    fn home(&self) -> &Path;

    /// What the store told it when it was opened.
    fn config(&self) -> DriverConfig;

    /// What it can do on this machine and this file system, each with the reason. Costs nothing: probed at open.
    fn capabilities(&self) -> &Capabilities;

    /// Facts for people, as `docker info` shows them, in a fixed order.
    ///
    /// # Errors
    /// A system call on the home failed.
    fn status(&self) -> Result<Vec<(String, String)>>;

    /// Makes the layer `id`: active, or a view of its parent.
    ///
    /// Costs a few system calls whatever the parent's size where [`Ability::InstantCreate`], else a copy of the parent's tree.
    ///
    /// # Errors
    /// - [`ErrorKind::Exists`]: there is a layer of this id.
    /// - [`ErrorKind::NotFound`]: there is no such parent.
    /// - [`ErrorKind::NotCommitted`]: the parent is active or a view.
    /// - [`ErrorKind::TooDeep`]: the chain would have more than [`Ability::MaxLayers`] layers.
    /// - [`ErrorKind::Unsupported`]: an option that this driver does not have here.
    fn create(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()>;

    /// Makes what is missing of a layer that [`Driver::create`] made with the same `spec` and that no barrier followed: a power cut may have
    /// taken it whole, or parts of it. What is there stays, whatever was written to it since. With [`Ability::InstantCreate`] only;
    /// the caller holds the layer's lock alone.
    ///
    /// # Errors
    /// As [`Driver::create`], but not [`ErrorKind::Exists`]; [`ErrorKind::Damaged`]: what is there cannot be made whole.
    fn complete(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<Changed> {
        if self.stat(id)?.is_some() {
            return Ok(Changed::No);
        }
        self.create(id, spec)?;
        Ok(Changed::Yes)
    }

    /// Where an archive is unpacked into the active layer `id`. One at a time for a layer.
    ///
    /// With a parent given at create the target may look at the parent's tree; without, what needs it is left to
    /// [`Driver::commit`] through [`Joints`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::NotActive`].
    fn target(&self, id: LayerId) -> Result<Box<dyn Target>>;

    /// Turns the active layer `id` into a committed one on `parent`, doing first what `joints` asks for.
    ///
    /// `parent` must be the one given at create, if one was given. Committing what is committed on the same parent
    /// changes nothing. Costs a few system calls and one for each joint.
    ///
    /// # Errors
    /// - [`ErrorKind::NotFound`]: no such layer or parent.
    /// - [`ErrorKind::NotActive`]: `id` is a view, or is committed on another parent.
    /// - [`ErrorKind::NotCommitted`]: the parent is not.
    /// - [`ErrorKind::Unsupported`]: a parent named only now, without [`Ability::ParallelUnpack`].
    /// - [`ErrorKind::TooDeep`]: as in create.
    /// - [`ErrorKind::Invalid`]: a joint names a file that no layer below has.
    fn commit(&self, id: LayerId, parent: Option<LayerId>, joints: &Joints) -> Result<Changed>;

    /// Makes `to` an active layer with the same parent and content as the active layer `from`, which stays.
    /// By reflink where the file system has it, else by copying what `from` itself holds.
    ///
    /// The caller sees to it that `from` does not change meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::NotActive`], [`ErrorKind::Exists`].
    fn copy(&self, from: LayerId, to: LayerId) -> Result<()>;

    /// Takes the layer `id` away, whatever state it is in, half made ones too.
    ///
    /// Costs the same whatever the layer's size: what is large is moved into the folder `trash` (on the same file system)
    /// as `<driver>-<id>-<n>`, and deleted there later, by [`Driver::purge`]. `Changed::No` if there was nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] where the driver itself can tell that the layer is mounted or a parent.
    fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed>;

    /// Gives the committed layer `from` the id `to`, which no layer has (any more). Layers that were made on `to` lie on it from
    /// now on, so its parent and its tree must be those of the layer that had the id before. `Changed::No` if `from` is not there and a
    /// committed `to` is: it was done already.
    ///
    /// For the repair of a damaged layer: the sound one is made beside it, the damaged one removed, and this follows. The caller
    /// sees to it that nothing is mounted or read meanwhile that lies on `to`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::NotCommitted`]; [`ErrorKind::Exists`]: `to` is a layer.
    fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed>;

    /// Deletes what [`Driver::remove`] moved into the trash. May take long; may be interrupted and called again. What other layers share with it stays, and
    /// counts as theirs: gives the layers whose [`Driver::usage`] is another one now.
    ///
    /// # Errors
    /// The file system's. [`ErrorKind::InUse`]: another layer is being filled and may take what it shares with this one; to be called again after that.
    fn purge(&self, trashed: &Path) -> Result<Vec<LayerId>>;

    /// Whether deleting what [`Driver::remove`] moved into the trash takes no more than deleting the files that are in it there.
    fn purges_only_the_folder(&self, trashed: &Path) -> bool {
        let _ = trashed;
        true
    }

    /// Waits until the file system has given back what was purged, and has it give back what it holds for one purpose and does not use, where another purpose
    /// lacks it or is about to. Gives the bytes of the latter. May take seconds: it moves data.
    ///
    /// # Errors
    /// The kernel's; that nothing could be given back is no error.
    fn make_room(&self) -> Result<u64> {
        Ok(0)
    }

    /// Makes ahead what mounts of the committed layer `id`, and of layers on it, need, which the first of them makes otherwise. [`Changed::Yes`]: its
    /// usage is another one now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; the file system's.
    fn prepare(&self, id: LayerId) -> Result<Changed> {
        let _ = id;
        Ok(Changed::No)
    }

    /// The opposite of [`Driver::prepare`]: takes away what was made for mounts of committed layers on which only other committed layers lie, and that `needed` does not know. The next mount
    /// makes it again. With `dry_run` nothing is done. Gives the layers, and what each takes less.
    ///
    /// The caller sees to it that nobody is between a plan of [`Driver::mounts`] and its mount.
    ///
    /// # Errors
    /// The file system's.
    fn unprepare(&self, needed: &dyn Fn(LayerId) -> bool, dry_run: bool) -> Result<Vec<(LayerId, Usage)>> {
        let _ = (needed, dry_run);
        Ok(Vec::new())
    }

    /// What the committed layer `id` shares with others was found damaged: layers that are made from now on use nothing of it without having compared it,
    /// and replace what is not what it should be.
    ///
    /// # Errors
    /// The file system's.
    fn distrust(&self, id: LayerId) -> Result<()> {
        let _ = id;
        Ok(())
    }

    /// How to mount the layer's tree. Describes only; nothing is changed.
    ///
    /// A committed layer is always mounted read-only.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::NotCommitted`] when the layer has no tree yet (made without parent
    /// to be joined later is fine: its tree is its own content).
    fn mounts(&self, id: LayerId, options: &MountOptions) -> Result<MountPlan>;

    /// What the driver knows of a layer; `None` if there is none of this id.
    ///
    /// # Errors
    /// The file system's, or [`ErrorKind::Damaged`].
    fn stat(&self, id: LayerId) -> Result<Option<LayerInfo>>;

    /// Calls `visit` for every layer on disk, in no order, also for damaged ones (as an error of kind
    /// [`ErrorKind::Damaged`] that names the id). Layers may come and go meanwhile.
    ///
    /// # Errors
    /// The file system's; whatever `visit` returns.
    fn walk(&self, visit: &mut dyn FnMut(LayerId, Result<LayerInfo>) -> Result<()>) -> Result<()>;

    /// What an inspecting engine shows of a layer, such as the folders of its parts.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn metadata(&self, id: LayerId) -> Result<Vec<(String, String)>>;

    /// Tells `sink` what makes the tree of `id` different from that of `base`, or from nothing.
    ///
    /// Entries come in the order a tar wants them: a directory before what is in it, names sorted by bytes. Parents
    /// of changed entries are told as modified when they themselves are not. The result is that of [`generic_diff`];
    /// with [`Ability::NativeDiff`] and `base` the layer's own parent, the cost is proportional to the changes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; whatever the sink returns.
    fn diff(
        &self,
        id: LayerId,
        base: Option<LayerId>,
        views: &dyn Views,
        sink: &mut dyn DiffSink,
    ) -> Result<()> {
        generic_diff(self.as_dyn(), id, base, views, sink)
    }

    /// A file with what `file` holds now, whatever is written to that afterwards, without a copy of the data: its blocks are shared, or the driver has the content
    /// already. `None` where that is not to be had, costs more than a copy, or fails: the copy fails then, too, and says why. `file` is that of `path` in the layer `id`, opened from what
    /// [`Driver::diff`] told; it is left at any place. For this driver's own [`Target`], which may keep the twin ([`FileData::twin`](vellum_archive::target::FileData::twin)).
    fn twin(&self, id: LayerId, path: &LayerPath, file: &File) -> Option<File> {
        let _ = (id, path, file);
        None
    }

    /// What the layer itself brings and nothing else, in the raw form of [`Form`](vellum_archive::tree::Form), so that it can be compared with the
    /// layer's manifest; `None` where the driver keeps layers in another way (whole trees, devices) or the layer brings nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Damaged`]; the kernel's.
    fn own(&self, id: LayerId, views: &dyn Views) -> Result<Option<Box<dyn View>>> {
        let _ = views;
        let Some(folder) = self.own_folder(id)? else { return Ok(None) };
        let open = vellum_archive::tree::open_dir(rustix::fs::CWD, folder.as_os_str());
        let open =
            open.map_err(|error| Error::system(format!("open {}", folder.display()), error).layer(id))?;
        Ok(Some(Box::new(plan::Folder(open))))
    }

    /// The folder that holds just what the layer itself brings, as overlayfs has it in an upper; `None` where there is no such folder.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn own_folder(&self, id: LayerId) -> Result<Option<std::path::PathBuf>> {
        let _ = id;
        Ok(None)
    }

    /// This, as a trait object: for the default methods.
    fn as_dyn(&self) -> &dyn Driver;

    /// What the layer takes on disk by itself, measured now: proportional to its own content.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn usage(&self, id: LayerId) -> Result<Usage>;

    /// The same of a writable layer that was made just now and that nobody has written to: for those who measure within the making. By default as
    /// [`Driver::usage`]; cheaper where that would have to bring what was written to the disk first.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    fn usage_of_new(&self, id: LayerId) -> Result<Usage> {
        self.usage(id)
    }

    /// Brings the layer's own files to the disk one by one: for small layers, where `syncfs` of the whole file system would wait
    /// for everybody else's writes. A layer whose last mount was volatile is an ordinary one again after this.
    ///
    /// # Errors
    /// The file system's: what it reports late (a full disk) is reported here.
    fn sync(&self, id: LayerId) -> Result<()>;

    /// Looks whether the layer's own structure is sound (not its content), and says what is not, in sentences.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], and the file system's.
    fn check(&self, id: LayerId) -> Result<Vec<String>>;

    /// Lets go of what the driver holds for all layers (devices, shared mounts), before the store is taken off.
    ///
    /// # Errors
    /// The kernel's.
    fn cleanup(&self) -> Result<()> {
        Ok(())
    }
}
