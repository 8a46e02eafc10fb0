//! Writes layers' tars.
//!
//! The same tree always gives the same bytes: entries come as the caller tells them, nothing depends on the clock, the
//! machine or names of users. The format is POSIX ustar, with a PAX header (`x`) in front of what ustar cannot hold: paths
//! over its fields, times with a fraction or outside 33 bits, sizes from 8 GiB, owners from 2^21, attributes (as
//! `SCHILY.xattr.*`, which docker, podman, containerd and GNU tar read). Holes are written as zeros.
//!
//! Whiteouts and opaque marks have the form of the OCI image specification ("Whiteouts", "Opaque Whiteout").

use crate::target::{Kept, LayerPath, Meta, Node as Special, Time};
use crate::tree::Node;
use rustix::fs::FileType;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};

const BLOCK: usize = 512;
const BUFFER: usize = 256 * 1024;

/// An entry that could not be written, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct WriteError {
    /// What was attempted.
    pub operation: &'static str,
    /// The entry.
    pub path: LayerPath,
    /// The reason.
    #[source]
    pub source: io::Error,
}

impl WriteError {
    fn at(operation: &'static str, path: &LayerPath) -> impl FnOnce(io::Error) -> Self {
        let path = path.clone();
        move |source| Self { operation, path, source }
    }
}

/// What an entry is, for a header.
enum Kind<'a> {
    File(u64),
    Dir,
    Symlink(&'a [u8]),
    HardLink(&'a [u8]),
    Special(Special),
}

/// Opens the file whose content goes into the archive for an entry.
pub type Open<'a> = dyn FnMut(&Node<'_>) -> io::Result<File> + 'a;

/// Writes a tar. See the module's documentation.
#[derive(Debug)]
pub struct TarWriter<W> {
    out: W,
    /// Files with several names that were written already, by device and inode.
    links: HashMap<(u64, u64), LayerPath>,
    buffer: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    /// A writer onto `out`, which should take large pieces well: headers are 512 bytes.
    pub fn new(out: W) -> Self {
        Self { out, links: HashMap::new(), buffer: Vec::new() }
    }

    /// Writes an entry of a tree: its header and, for a file, its content. A second name of a file that was written is
    /// a hard link to the first. Sockets are left out, since a tar cannot hold one.
    ///
    /// A file that shrinks meanwhile is filled up with zeros to the length it had when it was opened, as GNU tar does; what
    /// grows is cut there.
    ///
    /// # Errors
    /// Reading the entry or writing the archive; a name that a tar cannot hold.
    pub fn node(&mut self, path: &LayerPath, node: &Node<'_>) -> Result<Kept, WriteError> {
        self.node_read_by(path, node, &mut |node| node.open())
    }

    /// The same; a file's content is read, from its beginning, from what `open` gives.
    ///
    /// # Errors
    /// As there; what `open` returns.
    pub fn node_read_by(
        &mut self,
        path: &LayerPath,
        node: &Node<'_>,
        open: &mut Open<'_>,
    ) -> Result<Kept, WriteError> {
        if node.file_type() == FileType::Socket {
            return Ok(Kept::LeftOut("a tar cannot hold a socket"));
        }
        let mut meta = node.meta().map_err(WriteError::at("read the attributes of", path))?;
        if node.file_type() != FileType::Directory && node.stat.st_nlink > 1 {
            match self.links.entry(identity(node)) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    // The attributes came with the first name.
                    meta.xattrs.clear();
                    let first = first.get().as_bytes().to_vec();
                    self.header(path, &meta, &Kind::HardLink(&first))?;
                    return Ok(Kept::Yes);
                }
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(path.clone());
                }
            }
        }
        let special = node.special().map_err(WriteError::at("look at", path))?;
        match node.file_type() {
            FileType::Directory => self.header(path, &meta, &Kind::Dir)?,
            FileType::Symlink => {
                let text = node.link_text().map_err(WriteError::at("read the link", path))?;
                self.header(path, &meta, &Kind::Symlink(&text))?;
            }
            FileType::RegularFile if special.is_none() => {
                let file = open(node).map_err(WriteError::at("open", path))?;
                self.file(path, &meta, file)?;
            }
            _ => match special {
                Some(special) => self.header(path, &meta, &Kind::Special(special))?,
                None => return Ok(Kept::LeftOut("a tar cannot hold a file of this type")),
            },
        }
        Ok(Kept::Yes)
    }

    /// Lower layers' `path` is hidden: an empty file `.wh.NAME`.
    ///
    /// # Errors
    /// Writing the archive; `path` is the root.
    pub fn whiteout(&mut self, path: &LayerPath) -> Result<(), WriteError> {
        let Some((parent, name)) = path.split() else {
            return Err(WriteError::at("write a whiteout of", path)(io::ErrorKind::InvalidInput.into()));
        };
        self.mark(path, &parent, &[b".wh.", name].concat())
    }

    /// All that lower layers have in the directory `path` is hidden: an empty file `.wh..wh..opq` in it.
    ///
    /// # Errors
    /// Writing the archive.
    pub fn opaque(&mut self, path: &LayerPath) -> Result<(), WriteError> {
        self.mark(path, path, b".wh..wh..opq")
    }

    /// Ends the archive (two empty blocks) and gives the output back.
    ///
    /// # Errors
    /// Writing the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn mark(&mut self, path: &LayerPath, parent: &LayerPath, name: &[u8]) -> Result<(), WriteError> {
        let mut full = parent.as_bytes().to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(name);
        self.raw_header(&full, &Meta::default(), &Kind::File(0))
            .map_err(WriteError::at("write a whiteout of", path))
    }

    fn file(&mut self, path: &LayerPath, meta: &Meta, mut file: File) -> Result<(), WriteError> {
        let size = file.metadata().map_err(WriteError::at("look at", path))?.len();
        self.header(path, meta, &Kind::File(size))?;
        self.buffer.resize(BUFFER, 0);
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let mut got = match file.read(&mut self.buffer[..want]) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(WriteError::at("read", path)(error)),
            };
            if got == 0 {
                self.buffer[..want].fill(0);
                got = want;
            }
            self.out.write_all(&self.buffer[..got]).map_err(WriteError::at("archive", path))?;
            left -= got as u64;
        }
        self.pad(size).map_err(WriteError::at("archive", path))
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over > 0 { self.out.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }

    fn header(&mut self, path: &LayerPath, meta: &Meta, kind: &Kind<'_>) -> Result<(), WriteError> {
        let mut name = path.as_bytes().to_vec();
        if path.is_root() {
            name.push(b'.');
        }
        if matches!(kind, Kind::Dir) {
            name.push(b'/');
        }
        self.raw_header(&name, meta, kind).map_err(WriteError::at("archive", path))
    }

    fn raw_header(&mut self, name: &[u8], meta: &Meta, kind: &Kind<'_>) -> io::Result<()> {
        let mut pax = Pax::default();
        let mut block = Header::new();
        block.name(name, &mut pax);
        if let Kind::Symlink(text) | Kind::HardLink(text) = kind {
            if text.len() > 100 {
                pax.add(b"linkpath", text);
            }
            block.bytes(157, 100, text);
        }
        let size = if let Kind::File(size) = kind { *size } else { 0 };
        if size >= 1 << 33 {
            pax.add(b"size", size.to_string().as_bytes());
        }
        for (key, at, value) in [("uid", 108, meta.uid), ("gid", 116, meta.gid)] {
            if value >= 1 << 21 {
                pax.add(key.as_bytes(), value.to_string().as_bytes());
            }
            block.octal(at, 8, u64::from(value));
        }
        let seconds = u64::try_from(meta.mtime.seconds).unwrap_or(0);
        if seconds.cast_signed() != meta.mtime.seconds || seconds >= 1 << 33 || meta.mtime.nanoseconds > 0 {
            pax.add(b"mtime", decimal(meta.mtime).as_bytes());
        }
        for (key, value) in &meta.xattrs {
            if key.contains(&b'=') || key.contains(&0) {
                let text = format!("the attribute {} has a name that a tar cannot hold", key.escape_ascii());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            pax.add(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
        }
        block.octal(100, 8, u64::from(meta.mode));
        block.octal(124, 12, size);
        block.octal(136, 12, seconds);
        block.0[156] = match kind {
            Kind::File(_) => b'0',
            Kind::HardLink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::Special(Special::Char(..)) => b'3',
            Kind::Special(Special::Block(..)) => b'4',
            Kind::Dir => b'5',
            Kind::Special(Special::Fifo | Special::Socket) => b'6',
        };
        if let Kind::Special(Special::Char(major, minor) | Special::Block(major, minor)) = kind {
            block.octal(329, 8, u64::from(*major));
            block.octal(337, 8, u64::from(*minor));
        }
        if !pax.0.is_empty() {
            self.pax(name, &pax.0)?;
        }
        self.out.write_all(&block.sealed())
    }

    /// The extended header in front of an entry.
    fn pax(&mut self, name: &[u8], records: &[u8]) -> io::Result<()> {
        let base = name.strip_suffix(b"/").unwrap_or(name);
        let base = base.rsplit(|c| *c == b'/').next().unwrap_or(base);
        let mut block = Header::new();
        block.bytes(0, 100, &[b"PaxHeaders/", base].concat());
        block.octal(100, 8, 0o644);
        block.octal(108, 8, 0);
        block.octal(116, 8, 0);
        block.octal(124, 12, records.len() as u64);
        block.octal(136, 12, 0);
        block.0[156] = b'x';
        self.out.write_all(&block.sealed())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }
}

/// What tells two names of one file from two files.
fn identity(node: &Node<'_>) -> (u64, u64) {
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    (node.stat.st_dev as u64, node.stat.st_ino as u64)
}

/// Seconds with a fraction, trailing zeros cut. Before 1970 the fraction counts towards zero, as PAX has it.
fn decimal(time: Time) -> String {
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    let (seconds, fraction) = (total / 1_000_000_000, total % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{}", format!("{fraction:09}").trim_end_matches('0'))
}

/// Records of an extended header: `LENGTH KEY=VALUE\n`, the length counting itself.
#[derive(Default)]
struct Pax(Vec<u8>);

impl Pax {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// A header block of ustar.
struct Header([u8; BLOCK]);

impl Header {
    fn new() -> Self {
        let mut block = [0; BLOCK];
        block[257..265].copy_from_slice(b"ustar\x0000");
        Self(block)
    }

    /// The name, in two fields where it splits well, else in the extended header with its beginning here.
    fn name(&mut self, name: &[u8], pax: &mut Pax) {
        if name.len() <= 100 {
            return self.bytes(0, 100, name);
        }
        let split = (1..name.len() - 1)
            .rev()
            .find(|at| name[*at] == b'/' && *at <= 155 && name.len() - at - 1 <= 100);
        match split {
            Some(at) => {
                self.bytes(345, 155, &name[..at]);
                self.bytes(0, 100, &name[at + 1..]);
            }
            None => {
                pax.add(b"path", name);
                self.bytes(0, 100, name);
            }
        }
    }

    fn bytes(&mut self, at: usize, room: usize, value: &[u8]) {
        let length = value.len().min(room);
        self.0[at..at + length].copy_from_slice(&value[..length]);
    }

    /// Octal digits and a NUL; what does not fit is 0, and the extended header says it.
    fn octal(&mut self, at: usize, room: usize, value: u64) {
        let digits = room - 1;
        let value = if value >> (3 * digits) == 0 { value } else { 0 };
        self.bytes(at, digits, format!("{value:0digits$o}").as_bytes());
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.bytes(148, 7, format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::XattrForm;
    use crate::tree::Form;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
    use std::path::Path;

    fn archive(root: &Path, names: &[&str]) -> Vec<u8> {
        let dir = std::fs::File::open(root).unwrap();
        let form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: false };
        let mut tar = TarWriter::new(Vec::new());
        for name in names {
            let path = LayerPath::new(*name).unwrap();
            let parent = path.split().map_or(LayerPath::root(), |(parent, _)| parent);
            let opened = std::fs::File::open(root.join(parent.as_path())).unwrap();
            let last = path.split().map_or(b".".to_vec(), |(_, last)| last.to_vec());
            let last = std::ffi::OsString::from(String::from_utf8(last).unwrap());
            let node = Node::at(opened.as_fd(), &last, form).unwrap();
            assert_eq!(tar.node(&path, &node).unwrap(), Kept::Yes);
        }
        drop(dir);
        tar.whiteout(&LayerPath::new("gone/x").unwrap()).unwrap();
        tar.opaque(&LayerPath::new("fresh").unwrap()).unwrap();
        tar.finish().unwrap()
    }

    #[test]
    fn gnu_tar_reads_what_is_written() {
        let from = tempfile::tempdir().unwrap();
        let long = "n".repeat(200);
        let deep = format!("{}/{}", "d".repeat(60), "e".repeat(90));
        std::fs::create_dir_all(from.path().join(&deep)).unwrap();
        std::fs::write(from.path().join(&long), b"long name").unwrap();
        std::fs::write(from.path().join("file"), vec![7; 70_000]).unwrap();
        std::fs::set_permissions(from.path().join("file"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::hard_link(from.path().join("file"), from.path().join("other")).unwrap();
        std::os::unix::fs::symlink("t".repeat(150), from.path().join("link")).unwrap();
        let parent = "d".repeat(60);
        let names = ["", &parent, &deep, "file", "link", &long, "other"];
        let bytes = archive(from.path(), &names);
        assert_eq!(bytes, archive(from.path(), &names), "the same tree gives the same bytes");

        let to = tempfile::tempdir().unwrap();
        let file = to.path().join("out.tar");
        std::fs::write(&file, &bytes).unwrap();
        let tree = to.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let ok =
            std::process::Command::new("tar").arg("-xpf").arg(&file).arg("-C").arg(&tree).status().unwrap();
        assert!(ok.success());
        for name in ["file", &long, &deep] {
            let (a, b) = (from.path().join(name).metadata().unwrap(), tree.join(name).metadata().unwrap());
            assert_eq!(
                (a.mode(), a.mtime(), a.mtime_nsec()),
                (b.mode(), b.mtime(), b.mtime_nsec()),
                "{name}"
            );
        }
        assert_eq!(std::fs::read(tree.join("file")).unwrap(), vec![7; 70_000]);
        assert_eq!(tree.join("file").metadata().unwrap().ino(), tree.join("other").metadata().unwrap().ino());
        assert_eq!(std::fs::read_link(tree.join("link")).unwrap(), Path::new(&"t".repeat(150)));
        assert!(tree.join("gone/.wh.x").is_file() && tree.join("fresh/.wh..wh..opq").is_file());
    }

    #[test]
    fn times_and_lengths_are_exact() {
        let time = |seconds, nanoseconds| decimal(Time { seconds, nanoseconds });
        assert_eq!(time(1, 500_000_000), "1.5");
        assert_eq!(time(-1, 500_000_000), "-0.5");
        assert_eq!(time(-2, 0), "-2");
        assert_eq!(time(0, 1), "0.000000001");
        for length in 0..2000 {
            let mut pax = Pax::default();
            pax.add(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(pax.0).unwrap();
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, text.len());
        }
    }
}
