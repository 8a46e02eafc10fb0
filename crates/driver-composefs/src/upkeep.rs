//! What keeps a home in order: what goes when nobody needs it, what is looked at, and what a commit shares.

use crate::objects;
use crate::parts::{IMAGE, TAKING, TREE, UPPER, WORK, unlink};
use crate::tree::{self, Dir, Entry};
use crate::{Composefs, digest};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use vellum_archive::target::{LayerPath, Usage};
use vellum_archive::tree as disk;
use vellum_driver::{Error, Kind, Result};
use vellum_types::LayerId;

impl Composefs {
    /// Removes the objects that only this layer needed, and tells which layers have others of its objects now.
    pub(crate) fn collect(&self, id: LayerId, trashed: &Path) -> Result<BTreeSet<LayerId>> {
        let failed = |error| Error::system("remove the objects of a layer", error).layer(id);
        let folder = match disk::open_dir(rustix::fs::CWD, trashed.as_os_str()) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed(error)),
        };
        let open = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            match rustix::fs::openat(&folder, name, flags, Mode::empty()) {
                Ok(file) => Ok(Some(File::from(file))),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(failed(error.into())),
            }
        };
        let half_made = open(TAKING)?.is_some();
        let listed = open(TREE)?.map(|mut file| tree::objects_in(&mut file));
        let gone = match (half_made, listed) {
            (false, None) => return Ok(BTreeSet::new()),
            (false, Some(Ok(list))) => Some((id, list)),
            // What it had is not known: all that nobody lists goes.
            (true, _) | (false, Some(Err(_))) => None,
        };
        let _alone = self.parts.collecting_soon(id)?;
        let mut layers = Vec::new();
        self.home().walk(&mut |id, _| {
            layers.push(id);
            Ok(())
        })?;
        let collected = objects::collect(&self.parts.objects, gone, &layers, &|id| self.parts.tree_file(id))
            .map_err(failed)?;
        Ok(collected.heirs)
    }

    /// See [`Driver::unprepare`].
    pub(crate) fn take_spare_images(
        &self,
        needed: &dyn Fn(LayerId) -> bool,
        dry_run: bool,
    ) -> Result<Vec<(LayerId, Usage)>> {
        let (mut committed, mut covered, mut used) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        self.home().walk(&mut |id, info| {
            // A damaged one is mounted by nobody.
            let Ok(info) = info else { return Ok(()) };
            if info.kind == Kind::Committed {
                committed.push(id);
                covered.extend(info.parent);
            } else {
                used.extend(info.parent);
            }
            Ok(())
        })?;
        let is_spare = |id: &LayerId| covered.contains(id) && !used.contains(id) && !needed(*id);
        let mut taken = Vec::new();
        for id in committed.into_iter().filter(is_spare) {
            let size = self.parts.image_usage(id);
            let Some(size) = size.map_err(|error| Error::system("look at the image", error).layer(id))?
            else {
                continue;
            };
            if !dry_run {
                let folder =
                    self.home().folder(id)?.ok_or_else(|| Error::not_found("remove the image", id))?;
                unlink(folder.as_fd(), IMAGE)
                    .map_err(|error| Error::system("remove the image", error).layer(id))?;
            }
            taken.push((id, size));
        }
        Ok(taken)
    }

    /// See [`Driver::twin`]. What lies in a renamed directory, or had only its owner or mode changed, is told from a mount, of which nothing can be cloned: then the file in the upper is
    /// cloned, or it is an object.
    pub(crate) fn twin_of(&self, id: LayerId, path: &LayerPath, file: &File) -> io::Result<Option<File>> {
        if file.metadata()?.len() < objects::WORTH_CLONING {
            return Ok(None);
        }
        let objects = &self.parts.objects;
        if let Some(twin) = objects.clone_of(file)? {
            return Ok(Some(twin));
        }
        if !self.parts.features.reflink {
            return Ok(None);
        }
        if let Some(own) = self.parts.in_upper(id, path)?
            && let Some(twin) = objects.clone_of(&own)?
        {
            return Ok(Some(twin));
        }
        objects.object_of(&mut file.try_clone()?)
    }

    /// Whether nothing was written to an active layer through mounts.
    pub(crate) fn is_untouched(&self, id: LayerId) -> Result<bool> {
        let diff = self.home().open_part(id, UPPER)?;
        let names = disk::read_dir(diff.as_fd());
        Ok(names.map_err(|error| Error::system("list what was written", error).layer(id))?.is_empty())
    }

    /// Takes away what overlayfs leaves after a volatile mount so that nobody mounts the upper again unawares.
    pub(crate) fn drop_volatile_mark(&self, id: LayerId) -> Result<()> {
        let work = self.home().open_part(id, WORK)?;
        match disk::open_dir(work.as_fd(), OsStr::new("work")) {
            Ok(scratch) => Ok(disk::remove(scratch.as_fd(), OsStr::new("incompat"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::system("sync", error).layer(id)),
        }
    }

    /// Whether the objects that a tree names are there, with the lengths that it says, and sealed in a sealed home. Their contents are compared with the layer's manifest.
    pub(crate) fn check_objects(&self, id: LayerId, tree: &Dir, findings: &mut Vec<String>) -> Result<()> {
        let mut result = Ok(());
        each_file(
            tree,
            &LayerPath::root(),
            &mut |path, size, digest| match self.parts.objects.stat(digest) {
                Ok(Some(stat)) if u64::try_from(stat.st_size) == Ok(size) => {
                    match self.parts.objects.broken_seal(digest) {
                        Ok(None) => {}
                        Ok(Some(what)) => {
                            findings.push(format!("the object {digest} of its file {path} {what}"));
                        }
                        Err(error) => result = Err(Error::system("look at the objects", error).layer(id)),
                    }
                }
                Ok(Some(stat)) => findings.push(format!(
                    "the object {digest} of its file {path} has {} bytes, and should have {size}",
                    stat.st_size
                )),
                Ok(None) => findings.push(format!("the object {digest} of its file {path} is missing")),
                Err(error) => result = Err(Error::system("look at the objects", error).layer(id)),
            },
        );
        result
    }
}

/// Calls `each` for all files whose content is an object.
fn each_file(dir: &Dir, path: &LayerPath, each: &mut dyn FnMut(&LayerPath, u64, &digest::Digest)) {
    for (name, entry) in &dir.entries {
        // One with a path too long for a name came through a mount, and is told by where it lies.
        let here = path.join(name).unwrap_or_else(|_| path.clone());
        match entry {
            Entry::Dir(below) => each_file(below, &here, each),
            Entry::Leaf(leaf) => {
                if let (tree::What::File { size, .. }, Some(digest)) = (&leaf.what, leaf.object()) {
                    each(&here, *size, digest);
                }
            }
            Entry::Whiteout => {}
        }
    }
}
