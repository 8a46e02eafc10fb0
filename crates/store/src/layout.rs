//! Where things lie below the root.

use crate::{Code, Error, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use vellum_sys::file::PrivateFolderError;
use vellum_types::LayerId;

/// The longest path of a root, in bytes: SQLite opens no file whose path has more than 512, and the catalog's have up to 28 more than the root's.
const LONGEST_ROOT: usize = 480;

const ELSEWHERE: &str = "choose another folder with --root";

/// The paths of one store. The drawing is in the crate's documentation.
///
/// `data` is where everything lies that layers and images are made of: the root itself, or the mountpoint of the store's pool
/// ([`crate::pool`]). It is one file system, so that what is renamed stays in it and one barrier covers it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
    data: PathBuf,
}

impl Layout {
    /// The paths of the store at `root`, with a pool or without, as is found now. Under the lock `store` that does not change.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let pool = root.join("pool");
        let data = if pool.join(crate::pool::FACTS).exists() { pool.join("data") } else { root.clone() };
        Self { root, data }
    }

    /// The same store, looked at again.
    pub(crate) fn again(&self) -> Self {
        Self::new(&self.root)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the data. The catalog's durable transactions speak of what was brought to the disk in it before.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// A folder of each file system that the store takes room on.
    pub(crate) fn file_systems(&self) -> impl Iterator<Item = &Path> {
        let pool = self.has_pool().then_some(&*self.data);
        std::iter::once(&*self.root).chain(pool)
    }

    /// What the store keeps of its pool.
    pub(crate) fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    pub(crate) fn has_pool(&self) -> bool {
        self.data != self.root
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
        self.data.join("config")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    /// What the store keeps beside a layer.
    pub(crate) fn layer(&self, driver: &str, id: LayerId) -> PathBuf {
        self.layers().join(driver).join(id.to_string())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.data.join("blobs/sha256")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.data.join("tmp")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.data.join("trash")
    }

    pub(crate) fn mountpoints(&self) -> PathBuf {
        self.root.join("mnt")
    }

    pub(crate) fn driver_home(&self, driver: &str) -> PathBuf {
        self.data.join(driver)
    }

    /// The root, open; it must be there, and nobody else's.
    pub(crate) fn own_root(&self) -> Result<OwnedFd> {
        let root =
            vellum_sys::file::open_folder(rustix::fs::CWD, &self.root).map_err(|e| self.unusable(e))?;
        let facts = rustix::fs::fstat(&root).map_err(|e| self.unusable(e.into()))?;
        if facts.st_uid != rustix::process::geteuid().as_raw() {
            let reason = format!("it belongs to user {}, who could change it at any time", facts.st_uid);
            return Err(self.refused(reason));
        }
        Ok(root)
    }

    /// Whether a name in the root is the store's own. Whatever else lies there is somebody's, and stays.
    pub(crate) fn is_own(name: &str) -> bool {
        const NAMES: &[&str] = &[
            "blobs",
            "config",
            "id",
            "images",
            "layers",
            "locks",
            "mnt",
            "pool",
            "reserve",
            "store.json",
            "tmp",
            "trash",
        ];
        // Of a catalog, its log, and one that is rebuilt; of what was being tried out or published when a process was killed.
        const BEGINNINGS: &[&str] = &["catalog.db", ".probe-", vellum_sys::file::TEMPORARY_PREFIX];
        NAMES.contains(&name)
            || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
            || crate::drivers::FACTORIES.iter().any(|factory| factory.name() == name)
    }

    /// Refuses a folder that holds anything before a store is made in it: what has a name of the store's would be emptied one day as the
    /// store's own. The first files that a store makes are its locks.
    fn nothing_else(&self, root: &OwnedFd) -> Result<()> {
        if self.lock("store").exists() || crate::open::is_store(self) {
            return Ok(());
        }
        let names = vellum_archive::tree::read_dir(root.as_fd()).map_err(|e| self.unusable(e))?;
        match names.iter().find(|name| !["locks", "mnt", "lost+found"].iter().any(|fine| name == fine)) {
            None => Ok(()),
            Some(name) => {
                let shown = name.to_string_lossy().escape_debug().to_string();
                Err(self
                    .refused(format!("it is not empty ('{shown}' is in it), and there is no store in it")))
            }
        }
    }

    /// Makes the folders of a store but for its data, and the root itself with its parents. A new store wants an empty folder.
    ///
    /// In a folder in which others can make files they may have prepared something: it must be empty, also once they no longer can.
    pub(crate) fn make(&self, rootless: bool) -> Result<()> {
        if self.root.as_os_str().len() > LONGEST_ROOT {
            return Err(self.refused(format!("its path is longer than {LONGEST_ROOT} bytes")));
        }
        std::fs::create_dir_all(&self.root).map_err(|e| self.unusable(e))?;
        let root = self.own_root()?;
        let before = rustix::fs::fstat(&root).map_err(|e| self.unusable(e.into()))?.st_mode & 0o7777;
        let mode = if rootless { 0o700 } else { 0o711 };
        // Changing it, even into what it is, needs room on a file system that copies on write.
        if before != mode {
            self.nothing_of_others(&root, before)?;
            self.nothing_else(&root)?;
            rustix::fs::fchmod(&root, Mode::from_raw_mode(mode)).map_err(|e| self.unusable(e.into()))?;
            self.nothing_of_others(&root, before)?;
        }
        self.nothing_else(&root)?;
        for path in [self.locks(), self.mountpoints()] {
            make_folder(&path).map_err(|e| e.with_hint(ELSEWHERE))?;
        }
        crate::locks::make_files(self)
    }

    /// Makes the folders of the data. A pool must be mounted.
    pub(crate) fn make_data(&self) -> Result<()> {
        let blobs = self.data.join("blobs");
        for path in
            [self.configs(), self.images(), self.layers(), blobs, self.blobs(), self.tmp(), self.trash()]
        {
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
            // The error itself says what to do.
            Kind::ReadOnlyFilesystem => return Error::io("keep a store in", &self.root, error),
            Kind::PermissionDenied => {
                "choose a folder of your own with --root, or run the command as the store's owner"
            }
            Kind::AlreadyExists | Kind::NotADirectory => "a store is a folder: choose another with --root",
            _ => ELSEWHERE,
        };
        Error::io("keep a store in", &self.root, error).with_hint(hint)
    }

    fn nothing_of_others(&self, root: &OwnedFd, mode: u32) -> Result<()> {
        let empty = || vellum_archive::tree::read_dir(root.as_fd()).map(|names| names.is_empty());
        if mode & 0o022 == 0 || empty().map_err(|e| self.unusable(e))? {
            return Ok(());
        }
        Err(self.refused(format!("others can make files in it (mode {mode:04o}), and it is not empty")))
    }

    fn refused(&self, reason: String) -> Error {
        Error::new(Code::Invalid, "keep a store in", reason).object(self.root.display()).with_hint(ELSEWHERE)
    }
}

/// Makes one folder that only its owner may enter. One that is there must be such a folder.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    vellum_sys::file::private_folder(path).map(drop).map_err(|error| match error {
        PrivateFolderError::Io { source, .. } => Error::io("make the folder", path, source),
        other => Error::caused(Code::Invalid, "use the folder", other).object(path.display()),
    })
}

/// Opens a folder for reading, not following a link.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open the folder", path, e))
}
