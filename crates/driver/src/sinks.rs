//! What a diff is fed into.
//!
//! A container becomes a layer through its tar: [`TarSink`] writes it, and what is hashed is what is then unpacked, although the
//! container may be writing meanwhile. Feeding a target with the files themselves would read them twice, and could
//! keep something else than the digest says.

use crate::{Change, DiffEntry, DiffSink, Error, Result};
use std::io::Write;
use vellum_archive::target::{Kept, LayerPath};
use vellum_archive::write::{TarWriter, WriteError};

/// Writes a layer's tar: entries, hard links between them, deletions as `.wh.NAME`.
#[derive(Debug)]
pub struct TarSink<W: Write> {
    tar: TarWriter<W>,
    left_out: Vec<(LayerPath, &'static str)>,
}

impl<W: Write> TarSink<W> {
    /// A tar onto `out`.
    pub fn new(out: W) -> Self {
        Self { tar: TarWriter::new(out), left_out: Vec::new() }
    }

    /// Ends the tar. Gives the output back, and what a tar cannot hold (sockets), with the reason.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(self) -> Result<(W, Vec<(LayerPath, &'static str)>)> {
        let out = self.tar.finish().map_err(|error| Error::system("end the tar", error))?;
        Ok((out, self.left_out))
    }
}

impl<W: Write> DiffSink for TarSink<W> {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> Result<()> {
        match (entry.change, entry.node) {
            (Change::Deleted, _) | (_, None) => self.tar.whiteout(entry.path).map_err(unwritten)?,
            (_, Some(node)) => {
                if let Kept::LeftOut(reason) = self.tar.node(entry.path, node).map_err(unwritten)? {
                    self.left_out.push((entry.path.clone(), reason));
                }
            }
        }
        Ok(())
    }
}

fn unwritten(error: WriteError) -> Error {
    // The kind (a full disk) is that of the cause; the path is in the error itself.
    let kind = Error::system("", std::io::Error::from(error.source.kind())).kind;
    Error { source: Some(Box::new(error)), ..Error::new(kind, "write the tar", "an entry failed") }
}

/// Collects the changes as `docker diff` shows them: everything but the root.
#[derive(Debug, Default)]
pub struct Changes(pub Vec<(Change, LayerPath)>);

impl DiffSink for Changes {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> Result<()> {
        if !entry.path.is_root() {
            self.0.push((entry.change, entry.path.clone()));
        }
        Ok(())
    }
}
