//! The named files of an archive, wherever they lie.

use super::tarball::{self, Entry, Index};
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// How many links lead to a file at most.
const MAX_LINKS: usize = 8;

/// The files of a folder, or of a tar that can be read at random.
#[derive(Debug)]
pub(crate) enum Files {
    Folder { root: Arc<OwnedFd>, shown: String },
    Tar { file: Arc<File>, index: Index, shown: String },
}

impl Files {
    pub(crate) fn folder(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| Error::io(format!("open {shown}"))(errno.into()))?;
        Ok(Self::Folder { root: Arc::new(root), shown })
    }

    pub(crate) fn tar(file: File, shown: String) -> Result<Self> {
        let index = tarball::index(&file, &shown)?;
        Ok(Self::Tar { file: Arc::new(file), index, shown })
    }

    /// How errors name the archive.
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::Folder { shown, .. } | Self::Tar { shown, .. } => shown,
        }
    }

    /// The regular file of this path; links are followed inside the archive. `None` if there is none.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Blob>> {
        let Some(path) = tarball::normal(path).filter(|path| !path.is_empty()) else { return Ok(None) };
        match self {
            Self::Folder { root, shown } => {
                let blob = Blob { place: Place::Below(Arc::clone(root), path.clone()), size: 0 };
                match blob.file() {
                    Ok(file) => {
                        let facts =
                            file.metadata().map_err(Error::io(format!("look at {path} in {shown}")))?;
                        Ok(facts.is_file().then(|| Blob { size: facts.len(), ..blob }))
                    }
                    Err(error) if absent(&error) => Ok(None),
                    Err(error) => Err(Error::io(format!("open {path} in {shown}"))(error)),
                }
            }
            Self::Tar { file, index, .. } => {
                let mut path = &path;
                for _ in 0..=MAX_LINKS {
                    match index.get(path) {
                        Some(Entry::File { offset, size }) => {
                            let place = Place::Slice(Arc::clone(file), *offset);
                            return Ok(Some(Blob { place, size: *size }));
                        }
                        Some(Entry::Link(Some(target))) => path = target,
                        Some(Entry::Link(None)) | None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    /// A whole file, which must not be larger than `limit`. `part` names it in errors.
    pub(crate) fn read(&self, path: &str, limit: u64, part: &str) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.find(path)? else { return Ok(None) };
        if blob.size > limit {
            return Err(Error::limit(part, format!("{} bytes, at most {limit}", blob.size)));
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::with_capacity(blob.size as usize);
            blob.open()?.take(limit).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map(Some).map_err(Error::io(format!("read {path} of {}", self.shown())))
    }

    /// The names of the archive's topmost folders and files.
    pub(crate) fn top(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Self::Folder { root, shown } => {
                let list = || -> io::Result<Vec<String>> {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(root, c".", flags, Mode::empty())?;
                    rustix::fs::Dir::new(fd)?
                        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                        .collect()
                };
                list().map_err(Error::io(format!("list {shown}")))?
            }
            Self::Tar { index, .. } => {
                let top = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
                index.keys().map(top).collect()
            }
        };
        names.sort();
        names.dedup();
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }
}

/// Not there, or not reachable without leaving the archive.
fn absent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO))
}

/// Bytes in an archive.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    place: Place,
    pub(crate) size: u64,
}

#[derive(Debug, Clone)]
enum Place {
    /// From this offset of a file.
    Slice(Arc<File>, u64),
    /// A file below a folder, opened when it is read: an image may have more layers than a process may have
    /// open files.
    Below(Arc<OwnedFd>, String),
}

impl Blob {
    fn file(&self) -> io::Result<File> {
        match &self.place {
            Place::Slice(file, _) => file.try_clone(),
            Place::Below(root, path) => {
                // A pipe in the place of a file must not block.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = rustix::fs::openat2(root, path.as_str(), flags, Mode::empty(), resolve)?;
                Ok(File::from(fd))
            }
        }
    }

    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        match &self.place {
            Place::Slice(file, offset) => {
                Ok(Box::new(Slice { file: Arc::clone(file), at: *offset, left: self.size }))
            }
            Place::Below(..) => Ok(Box::new(self.file()?)),
        }
    }
}

/// Reads a part of a file without moving the file's own position, which others share.
struct Slice {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..want], self.at)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive became shorter"));
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
