//! What lies on disk, as data.

use super::make::named;
use super::{Time, Tree, What};
use rustix::fs::{FileType, Stat, lgetxattr, llistxattr, lstat};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// A tree as it was read (or is declared). Compared with [`Snapshot::differences`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub(super) facts: BTreeMap<Vec<u8>, Fact>,
}

/// All that is known of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) time: Time,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name, by bytes, of the same file, when it has several in this tree.
    pub(super) same_as: Option<Vec<u8>>,
}

/// An entry's type with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Dir,
    File { size: u64, hash: u128, head: Vec<u8> },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

/// How much of a file's content is kept to be shown.
const HEAD: usize = 40;

impl Snapshot {
    /// Reads the tree below `root`, the root itself included, following no link.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut reader = Reader::default();
        reader.entry(root, Vec::new())?;
        Ok(reader.finish())
    }

    /// The paths, the root's empty one first.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.facts.keys().map(Vec::as_slice)
    }

    /// Whether there is an entry of this path.
    pub fn has(&self, path: impl AsRef<[u8]>) -> bool {
        self.facts.contains_key(path.as_ref())
    }

    /// Entries, the root included.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// Whether not even a root was read.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// Takes out all entries for which `keep` says no, such as those another tool is known to leave out.
    #[must_use]
    pub fn filtered(mut self, mut keep: impl FnMut(&[u8]) -> bool) -> Self {
        self.facts.retain(|path, _| keep(path));
        self
    }

    /// Takes out all attributes for which `keep` says no.
    #[must_use]
    pub fn filtered_xattrs(mut self, mut keep: impl FnMut(&[u8]) -> bool) -> Self {
        for fact in self.facts.values_mut() {
            fact.xattrs.retain(|name, _| keep(name));
        }
        self
    }
}

#[derive(Default)]
struct Reader {
    facts: BTreeMap<Vec<u8>, Fact>,
    files: HashMap<(u64, u64), Vec<Vec<u8>>>,
}

impl Reader {
    fn entry(&mut self, at: &Path, path: Vec<u8>) -> io::Result<()> {
        let fact = self.fact(at, &path).map_err(named(at))?;
        let is_dir = fact.kind == Kind::Dir;
        self.facts.insert(path.clone(), fact);
        if is_dir {
            for child in fs::read_dir(at).map_err(named(at))? {
                let name = child.map_err(named(at))?.file_name();
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.as_bytes());
                self.entry(&at.join(&name), below)?;
            }
        }
        Ok(())
    }

    fn fact(&mut self, at: &Path, path: &[u8]) -> io::Result<Fact> {
        let stat = lstat(at)?;
        let kind = kind(at, &stat)?;
        if kind != Kind::Dir && stat.st_nlink > 1 {
            self.files.entry((stat.st_dev, stat.st_ino)).or_default().push(path.to_vec());
        }
        Ok(Fact {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            time: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX)),
            xattrs: xattrs(at)?,
            same_as: None,
        })
    }

    fn finish(mut self) -> Snapshot {
        for names in self.files.values_mut().filter(|names| names.len() > 1) {
            names.sort();
            for name in names.iter() {
                if let Some(fact) = self.facts.get_mut(name) {
                    fact.same_as = Some(names[0].clone());
                }
            }
        }
        Snapshot { facts: self.facts }
    }
}

fn kind(at: &Path, stat: &Stat) -> io::Result<Kind> {
    let numbers = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Dir,
        FileType::RegularFile => content(fs::File::open(at)?)?,
        FileType::Symlink => Kind::Symlink(fs::read_link(at)?.into_os_string().into_vec()),
        FileType::CharacterDevice => Kind::Char(numbers.0, numbers.1),
        FileType::BlockDevice => Kind::Block(numbers.0, numbers.1),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return Err(io::Error::other("of no known type")),
    })
}

fn content(mut file: impl io::Read) -> io::Result<Kind> {
    let (mut size, mut hash, mut head) = (0, Xxh3::new(), Vec::new());
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(Kind::File { size, hash: hash.digest128(), head });
        }
        head.extend_from_slice(&buffer[..n.min(HEAD.saturating_sub(head.len()))]);
        hash.update(&buffer[..n]);
        size += n as u64;
    }
}

fn xattrs(at: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let len = match llistxattr(at, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut out = BTreeMap::new();
    // XFS tells ACLs twice, under a name of its own too.
    let alias = |name: &&[u8]| name.is_empty() || name.starts_with(b"trusted.SGI_ACL_");
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !alias(name)) {
        let mut value = vec![0; 64 << 10];
        let len = lgetxattr(at, OsStr::from_bytes(name), &mut value)?;
        value.truncate(len);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

impl Tree {
    /// What reading the tree would give, without making it.
    pub fn snapshot(&self) -> Snapshot {
        let mut groups: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
        let mut facts = BTreeMap::new();
        for (path, entry) in &self.entries {
            let source = match &entry.what {
                What::HardLink(to) => {
                    groups.entry(to).or_insert_with(|| vec![to]).push(path);
                    self.entries.get(to).unwrap_or(entry)
                }
                _ => entry,
            };
            let kind = match &source.what {
                What::Dir => Kind::Dir,
                What::File { size, data } => {
                    let mut holes = Holes { size: *size, at: 0, data };
                    // Reading from memory does not fail.
                    content(&mut holes).unwrap_or(Kind::Fifo)
                }
                What::HardLink(to) | What::Symlink(to) => Kind::Symlink(to.clone()),
                What::Char(major, minor) => Kind::Char(*major, *minor),
                What::Block(major, minor) => Kind::Block(*major, *minor),
                What::Fifo => Kind::Fifo,
                What::Socket => Kind::Socket,
            };
            let fact = Fact {
                kind,
                mode: source.mode,
                uid: source.uid,
                gid: source.gid,
                time: source.time,
                xattrs: source.xattrs.clone(),
                same_as: None,
            };
            facts.insert(path.clone(), fact);
        }
        for mut names in groups.into_values() {
            names.sort_unstable();
            for name in &names {
                if let Some(fact) = facts.get_mut(*name) {
                    fact.same_as = Some(names[0].to_vec());
                }
            }
        }
        Snapshot { facts }
    }
}

/// A declared file's bytes, holes as zeros.
struct Holes<'a> {
    size: u64,
    at: u64,
    data: &'a [(u64, Vec<u8>)],
}

impl io::Read for Holes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(usize::try_from(self.size - self.at).unwrap_or(usize::MAX));
        let window = &mut buffer[..n];
        window.fill(0);
        let end = self.at + n as u64;
        for (offset, bytes) in self.data {
            let from = self.at.max(*offset);
            let to = end.min(offset + bytes.len() as u64);
            if from < to {
                let target = (from - self.at) as usize..(to - self.at) as usize;
                let source = (from - offset) as usize..(to - offset) as usize;
                window[target].copy_from_slice(&bytes[source]);
            }
        }
        self.at = end;
        Ok(n)
    }
}
