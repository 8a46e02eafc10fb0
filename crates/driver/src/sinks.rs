//! What a diff is fed into.
//!
//! A container becomes a layer through its tar: [`TarSink`] writes it, and what is hashed is what is then unpacked, although the
//! container may be writing meanwhile. Feeding a target with the files themselves would read them twice, and could
//! keep something else than the digest says. Where files can share their blocks, the tar is read from twins that nobody writes to ([`Driver::twin`](crate::Driver::twin)),
//! and the target keeps those: the data pass through memory, to be hashed, and are not written again.

use crate::{Change, DiffEntry, DiffSink, Error, Result};
use std::fs::File;
use std::io::{self, Write};
use vellum_archive::target::{Kept, LayerPath};
use vellum_archive::tree::Node;
use vellum_archive::write::{TarWriter, WriteError};

/// Opens the file whose content goes into the tar.
type Open<'a> = dyn FnMut(&LayerPath, &Node<'_>) -> io::Result<File> + 'a;

/// Writes a layer's tar: entries, hard links between them, deletions as `.wh.NAME`.
pub struct TarSink<'a, W: Write> {
    tar: TarWriter<W>,
    open: Box<Open<'a>>,
    left_out: Vec<(LayerPath, &'static str)>,
}

impl<W: Write> std::fmt::Debug for TarSink<'_, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarSink").field("left_out", &self.left_out).finish_non_exhaustive()
    }
}

impl<'a, W: Write> TarSink<'a, W> {
    /// A tar onto `out`.
    pub fn new(out: W) -> Self {
        Self::reading(out, |_, node| node.open())
    }

    /// A tar onto `out`; files' contents are read from what `open` gives, once for each file that is in it with its content.
    pub fn reading(out: W, open: impl FnMut(&LayerPath, &Node<'_>) -> io::Result<File> + 'a) -> Self {
        Self { tar: TarWriter::new(out), open: Box::new(open), left_out: Vec::new() }
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

impl<W: Write> DiffSink for TarSink<'_, W> {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> Result<()> {
        match (entry.change, entry.node) {
            (Change::Deleted, _) | (_, None) => self.tar.whiteout(entry.path).map_err(unwritten)?,
            (_, Some(node)) => {
                let open = &mut |node: &Node<'_>| (self.open)(entry.path, node);
                if let Kept::LeftOut(reason) =
                    self.tar.node_read_by(entry.path, node, open).map_err(unwritten)?
                {
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
