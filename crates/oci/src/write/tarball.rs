//! An archive in a tar.

use super::Output;
use super::place::{Fill, Place, copy, path_of};
use crate::{Error, Result, spool};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Seek as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use vellum_archive::digest::HashingWriter;
use vellum_types::Digest;

const BLOCK: u64 = 512;

/// A tar in the making. Folders are listed before what lies in them.
pub(super) struct TarPlace<'a> {
    out: Out<'a>,
    spool: PathBuf,
    listed: BTreeSet<String>,
}

enum Out<'a> {
    /// Headers can be written when the length is known.
    File(BufWriter<&'a File>),
    Stream(&'a mut dyn Write),
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(out) => out.write(bytes),
            Self::Stream(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(out) => out.flush(),
            Self::Stream(out) => out.flush(),
        }
    }
}

fn failed(path: &str) -> impl FnOnce(io::Error) -> Error {
    Error::io(format!("write {path} into the archive"))
}

impl<'a> TarPlace<'a> {
    pub(super) fn new(output: Output<'a>, spool: &Path) -> Result<Self> {
        let out = match output {
            Output::File(mut file) => {
                file.rewind().map_err(Error::io("rewind the archive"))?;
                Out::File(BufWriter::with_capacity(256 << 10, file))
            }
            Output::Stream(out) => Out::Stream(out),
            Output::Folder(path) => {
                let output = path.display().to_string();
                return Err(Error::Output { output, reason: "a tar is a file, and this is a folder".into() });
            }
        };
        Ok(Self { out, spool: spool.to_owned(), listed: BTreeSet::new() })
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let end = [0; 2 * BLOCK as usize];
        self.out.write_all(&end).and_then(|()| self.out.flush()).map_err(Error::io("write the archive's end"))
    }

    /// The folders that `path` lies in, if they were not listed yet.
    fn list_folders(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..=at];
            if self.listed.insert(folder.to_owned()) {
                self.out.write_all(&headers(folder, b'5', 0, "")).map_err(failed(folder))?;
            }
        }
        Ok(())
    }

    /// Lists the path and its folders; false when it was listed before.
    fn list(&mut self, path: &str) -> Result<bool> {
        self.list_folders(path)?;
        Ok(self.listed.insert(path.to_owned()))
    }

    fn pad(&mut self, size: u64, path: &str) -> Result<()> {
        let rest = (size.next_multiple_of(BLOCK) - size) as usize;
        self.out.write_all(&[0; BLOCK as usize][..rest]).map_err(failed(path))
    }
}

/// A blob whose header is filled in afterwards.
fn blob_in_place(place: &mut TarPlace<'_>, fill: &mut Fill<'_>) -> Result<(Digest, u64)> {
    place.list_folders("blobs/sha256/")?;
    let Out::File(out) = &mut place.out else {
        return Err(failed("a blob")(io::ErrorKind::NotSeekable.into()));
    };
    let start = out.stream_position().map_err(failed("a blob"))?;
    out.write_all(&[0; BLOCK as usize]).map_err(failed("a blob"))?;
    let mut measured = HashingWriter::new(&mut *out);
    fill(&mut measured)?;
    let (digest, size, _) = measured.finish();
    let path = path_of(&digest);
    let rest = (size.next_multiple_of(BLOCK) - size) as usize;
    out.write_all(&[0; BLOCK as usize][..rest]).and_then(|()| out.flush()).map_err(failed(&path))?;
    if place.listed.insert(path.clone()) {
        out.get_ref().write_all_at(&header(&path, b'0', size, ""), start).map_err(failed(&path))?;
    } else {
        // The same bytes are there already: this copy is taken back.
        out.seek(io::SeekFrom::Start(start)).map_err(failed(&path))?;
        out.get_ref().set_len(start).map_err(failed(&path))?;
    }
    Ok((digest, size))
}

impl Place for TarPlace<'_> {
    fn blob(&mut self, fill: &mut Fill<'_>) -> Result<(Digest, u64)> {
        if matches!(self.out, Out::File(_)) {
            return blob_in_place(self, fill);
        }
        let spooled = spool::unnamed(&self.spool)?;
        let mut measured = HashingWriter::new(BufWriter::with_capacity(256 << 10, &spooled));
        fill(&mut measured)?;
        let (digest, size, mut buffered) = measured.finish();
        buffered.flush().map_err(Error::io("spool a layer"))?;
        self.known_blob(&digest, size, &mut |out| copy(&spooled, size, None, out))?;
        Ok((digest, size))
    }

    fn known_blob(&mut self, digest: &Digest, size: u64, fill: &mut Fill<'_>) -> Result<()> {
        self.file(&path_of(digest), size, fill)
    }

    fn file(&mut self, path: &str, size: u64, fill: &mut Fill<'_>) -> Result<()> {
        if !self.list(path)? {
            return Ok(());
        }
        self.out.write_all(&headers(path, b'0', size, "")).map_err(failed(path))?;
        let mut counted = Counted { inner: &mut self.out, count: 0 };
        fill(&mut counted)?;
        let written = counted.count;
        if written != size {
            return Err(Error::damaged(path, format!("it has {written} bytes where {size} were recorded")));
        }
        self.pad(size, path)
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        if self.list(path)? {
            self.out.write_all(&headers(path, b'2', 0, target)).map_err(failed(path))?;
        }
        Ok(())
    }

    fn read(&mut self, _path: &str) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

struct Counted<W> {
    inner: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The longest name that a header has room for.
const LONGEST: usize = 100;

/// What comes before a file's content. A longer name, as a blob with a SHA-512 digest has, is told by an extended header before the file's own,
/// which has as much of it as fits.
fn headers(path: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
    let Some(short) = path.get(..LONGEST).filter(|short| short.len() < path.len()) else {
        return header(path, kind, size, link).to_vec();
    };
    let rest = format!(" path={path}\n");
    // A record's length counts its own digits; names of this crate's making give it three.
    let record = format!("{}{rest}", rest.len() + 3);
    let mut out = header("PaxHeaders/path", b'x', record.len() as u64, "").to_vec();
    out.extend_from_slice(record.as_bytes());
    out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
    out.extend_from_slice(&header(short, kind, size, link));
    out
}

/// A header of the ustar form; sizes beyond its octal digits in the binary form that all readers know. The name is at most [`LONGEST`] bytes.
fn header(path: &str, kind: u8, size: u64, link: &str) -> [u8; BLOCK as usize] {
    let mut header = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
