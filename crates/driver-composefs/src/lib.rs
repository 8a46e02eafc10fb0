//! The composefs driver: an image is one flattened tree of metadata over objects that all images share, and a container an upper over that.
//!
//! | taken from | what |
//! |---|---|
//! | file-level drivers (overlay) | a container is there at once; containers read the same page cache, here also those of different images |
//! | block-level drivers (btrfs, devicemapper) | a first write copies blocks: objects and uppers lie on one file system, and where that has reflink, the kernel's copy-up is a clone |
//! | one tree a container (vfs) | a look-up costs the same however many layers the image has |
//! | content-addressed storage (ostree, composefs) | a file is stored once, in whichever layers and images it is |
//!
//! # On disk
//!
//! ```text
//!   HOME/                        0700
//!     objects/<ab>/<cdef…>       a file's content, once; named by its fs-verity digest (`objects`, `digest`)
//!     <id>/                      0700, a layer
//!       info                     `active c`: what the layer is, and its parent
//!       tree                     what the layer itself brings: names, attributes, objects (`tree::file`); none of an active layer that no archive was unpacked into
//!       image                    EROFS: the whole tree of the layer's chain; made when it is first needed, and again if it is gone
//!       diff/ work/              overlayfs's, while the layer is active
//!       taking                   there while contents are taken that `tree` does not list yet
//!     .sealed                    there: all objects have fs-verity, and every mount asks for it (`seal`)
//!     .lock .none .features .images
//! ```
//!
//! A view has none of the parts.
//!
//! # What of this is the composefs tools'
//!
//! | | here | theirs (1.0.8, compared by a test where they are installed) |
//! |---|---|---|
//! | objects | name, folders, content, files up to 64 bytes in the image | the same: `mkcomposefs --digest-store` makes the same objects of the same tree |
//! | an object's time | says which layer made it | means nothing |
//! | image | EROFS with `trusted.overlay.metacopy` (with the digest) and `redirect`, their header | the same entries in `composefs-info dump`, no object is missing, and `mount.composefs` mounts it; its bytes differ, as it is laid out otherwise and has no whiteouts `00` to `ff` in its root. So its own digest is not theirs |
//! | layers | `tree` | none; composefs-rs keeps streams of tars |
//! | who verifies | in a sealed home (`seal`: the file system has fs-verity) the kernel, whenever an object is opened and read. Elsewhere nobody while a file is read: `check` compares layers with their manifests, a load compares objects that nobody vouches for | the kernel, with `verity` and a file system that has fs-verity |
//! | who verifies the image | `check` | the kernel, if who mounts knows its digest |
//!
//! # What the kernel mounts
//!
//! ```text
//!   container's root:  overlay   upperdir  <id>/diff          what it wrote
//!                                lowerdir+ EROFS of <parent>/image, mounted once for all containers of the image: names, attributes, short files
//!                                datadir+  objects            contents: the file's attribute `redirect` names the object
//! ```
//!
//! - **Reading**: the name is looked up in the upper and in one directory of the image; opening the file leads to the object, whose pages are in memory once.
//! - **First write**: overlayfs copies up; with reflink the object's blocks are shared. A change of owner or mode copies no data (`metacopy`).
//! - **For others** (containerd), who mount by themselves and may read an upper by themselves, the overlay is told as strings with `metacopy=off`. Until Linux 6.16 overlayfs finds no
//!   objects so: then only the mounter makes the overlay ([`MountPlan::by_mounter`](vellum_driver::MountPlan::by_mounter)), and they get a bind mount of it, through which all reads rightly.
//!   `metacopy=on` in their strings would not do: BuildKit reads the upper of what says it is an overlay, and would take a file whose owner was changed for one of zeros.
//! - **On older kernels** (`probe` has the table): overlayfs takes an image only at a place, which shared images have anyway, and views give theirs for a moment.
//! - **Deletion**: a whiteout in the upper. The object stays as long as a layer lists it.
//! - **Commit**: the upper is read into a tree (`upper`); files that were written become objects by a clone, others name the objects they had; a renamed directory
//!   takes along what it had below, as metadata. Where the container goes on (`vellum commit`), the layer is made of a tar of its changes, and the large files in that are read from
//!   twins: clones that become the objects, or the objects themselves. Archives are unpacked without an upper: contents go from the stream to objects, names to the tree in memory (`target`).
//!
//! # Locks
//!
//! The caller holds the lock of the layer that a call is about; committed layers do not change. `.lock` is held shared by whoever takes objects for a layer, and alone by whoever removes
//! some. `tree` and `image` are replaced by a rename. Two that make the same image make the same bytes.
//!
//! # Algorithms
//!
//! *create*: `<id>`, `diff` with the attributes of the parent's root, `work`, then `info`. *target*: 1. lock shared, mark `taking`; 2. each content is hashed while it comes: one that is
//! there and can be trusted (`objects`) is used, another made, in a sealed home by threads (`sealer`); 3. at the end `tree` is put in place, and the mark goes. *commit*: 1. what was written through mounts is laid over `tree`;
//! 2. directories that the archive did not list, and links to files below, take what the parent's tree has; 3. `tree`; 4. `diff` and `work` go; 5. `info`.
//! *mounts*: the image of the layer (or of an active one's parent) is made if it is not there: the trees of the chain are laid over each other, base first, and written, synced, and
//! renamed into place. *unprepare*: images of committed layers on which only other committed layers lie go; whoever unpacks layer by layer through mounts (containerd) has one made for each
//! chain on the way. What is mounted keeps its file; the caller's lock sees to it that no plan is on its way to a mount. The tree that was needed last is kept in memory, so that the layers of a load are each laid over it.
//! *remove*: a rename into the trash. *purge*: the objects that no other layer lists go (`objects`), then the folder.
//!
//! *diff*: of a container, its upper is walked beside a view of its parent, as with overlay. A committed layer is shown as the folder that overlay would have of it, by an image of its own
//! tree in which overlayfs's marks are escaped once more, and walked in the same way; `check` reads it in the same way, too.
//!
//! *usage*: `tree`, `image`, the upper, and the objects that the layer was the first to bring. When a layer goes, what others need of its objects is theirs from then on. So the sum over
//! all layers is what is on disk.
//!
//! # What can go wrong
//!
//! - *Power goes* while a load is at work: objects may be there without their content. They are not trusted without a look, because their maker was never recorded.
//! - *A process dies* while it takes objects: the mark `taking` stays, and the removal of the half-made layer looks at all objects.
//! - *An object rots*: in a sealed home who reads it gets `EIO`, elsewhere what is there. All layers that list it are damaged. `check` finds the file by the layer's manifest; [`Driver::distrust`](vellum_driver::Driver::distrust) has the next load compare
//!   before it uses any of them, and the bad one is replaced, for all layers.
//! - *An image rots*: `check` compares it with what its layers give.
//! - *No reflink* (ext4): all works, and a first write copies the whole file.
//! - The ACL of a lower file cannot be changed before anything else of the file was, since overlayfs asks the read-only file system below; and until a file is opened, its blocks are
//!   those of its length.

mod content;
mod digest;
mod driver;
mod factory;
mod joints;
mod objects;
mod parts;
mod plan;
mod probe;
mod seal;
mod sealer;
mod target;
mod tree;
mod upkeep;
mod upper;

pub use driver::Composefs;
pub use factory::{ComposefsFactory, FACTORY};
