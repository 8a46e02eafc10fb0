//! Where an archive's files go: the seam between forms and outputs.

use crate::{Error, Result};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use vellum_archive::digest::HashingWriter;
use vellum_types::Digest;

/// Writes what it is given a writer for.
pub(super) type Fill<'a> = dyn FnMut(&mut dyn Write) -> Result<()> + 'a;

/// Takes files by path, and blobs by content.
pub(super) trait Place {
    /// A blob of unknown length, named by its digest.
    fn blob(&mut self, fill: &mut Fill<'_>) -> Result<(Digest, u64)>;

    /// A blob whose digest and length are known.
    fn known_blob(&mut self, digest: &Digest, size: u64, fill: &mut Fill<'_>) -> Result<()>;

    /// A file of known length.
    fn file(&mut self, path: &str, size: u64, fill: &mut Fill<'_>) -> Result<()>;

    /// A symbolic link.
    fn symlink(&mut self, path: &str, target: &str) -> Result<()>;

    /// A document that was there before, when an archive is added to.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>>;

    /// A whole document.
    fn document(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let operation = format!("write {path}");
        let mut fill = |out: &mut dyn Write| out.write_all(bytes).map_err(Error::io(operation.clone()));
        self.file(path, bytes.len() as u64, &mut fill)
    }
}

/// The path of a blob in an OCI layout.
pub(super) fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Copies `size` bytes from the beginning of a file, whose position others may share, and checks their digest.
pub(super) fn copy(file: &File, size: u64, digest: Option<&Digest>, out: &mut dyn Write) -> Result<()> {
    let mut out = HashingWriter::new(out);
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < size {
        let want = buffer.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let count = match file.read_at(&mut buffer[..want], at) {
            Ok(0) => return Err(Error::damaged("a kept blob", "it is shorter than recorded")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read a blob")(error)),
        };
        out.write_all(&buffer[..count]).map_err(Error::io("write a blob"))?;
        at += count as u64;
    }
    let (found, ..) = out.finish();
    match digest {
        Some(digest) if found != *digest && digest.algorithm() == found.algorithm() => {
            let reason = format!("its bytes have the digest {found}");
            Err(Error::damaged(format!("the kept blob {digest}"), reason))
        }
        _ => Ok(()),
    }
}

/// The first bytes of a file.
pub(super) fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 16];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// A whole small file that may be absent.
pub(super) fn read_small(file: io::Result<File>, limit: u64, what: &str) -> Result<Option<Vec<u8>>> {
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("open {what}"))(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(format!("read {what}")))?;
    if bytes.len() as u64 > limit {
        return Err(Error::limit(what, format!("more than {limit} bytes")));
    }
    Ok(Some(bytes))
}
