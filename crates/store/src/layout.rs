//! Where things lie below the root.

use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use vellum_types::LayerId;

const ELSEWHERE: &str = "choose another folder with --root";

/// The paths of one store. The drawing is in the crate's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.root.join("catalog.db")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub(crate) fn lock(&self, name: &str) -> PathBuf {
        self.locks().join(name)
    }

    pub(crate) fn configs(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// What the store keeps beside a layer.
    pub(crate) fn layer(&self, driver: &str, id: LayerId) -> PathBuf {
        self.layers().join(driver).join(id.to_string())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn mountpoints(&self) -> PathBuf {
        self.root.join("mnt")
    }

    pub(crate) fn driver_home(&self, driver: &str) -> PathBuf {
        self.root.join(driver)
    }

    /// Makes the folders of a store, and the root itself with its parents.
    pub(crate) fn make(&self, rootless: bool) -> Result<()> {
        std::fs::create_dir_all(&self.root).map_err(|e| self.unusable(e))?;
        let root =
            vellum_sys::file::open_folder(rustix::fs::CWD, &self.root).map_err(|e| self.unusable(e))?;
        let mode = if rootless { 0o700 } else { 0o711 };
        rustix::fs::fchmod(&root, Mode::from_raw_mode(mode)).map_err(|e| self.unusable(e.into()))?;
        for path in [
            self.locks(),
            self.configs(),
            self.images(),
            self.layers(),
            self.root.join("blobs"),
            self.blobs(),
            self.tmp(),
            self.trash(),
            self.mountpoints(),
        ] {
            make_folder(&path).map_err(|e| e.with_hint(ELSEWHERE))?;
        }
        Ok(())
    }
}

impl Layout {
    /// There can be no store at the root.
    fn unusable(&self, error: std::io::Error) -> Error {
        use std::io::ErrorKind as Kind;
        let hint = match error.kind() {
            Kind::ReadOnlyFilesystem => {
                "its file system is mounted read-only, and a store needs one that can be written"
            }
            Kind::PermissionDenied => {
                "choose a folder of your own with --root, or run the command as the store's owner"
            }
            Kind::AlreadyExists | Kind::NotADirectory => "a store is a folder: choose another with --root",
            _ => ELSEWHERE,
        };
        Error::io("keep a store in", &self.root, error).with_hint(hint)
    }
}

/// Makes one folder that only its owner may enter; one that is there is left as it is.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    vellum_sys::file::ensure_folder(rustix::fs::CWD, path, 0o700)
        .map(drop)
        .map_err(|e| Error::io("make the folder", path, e))
}

/// Opens a folder for reading, not following a link.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open the folder", path, e))
}
