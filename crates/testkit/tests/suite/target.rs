//! A target that loses something.

use crate::Fault;
use std::io::{self, BufRead, Read};
use vellum_archive::target::{
    FileData, Finished, Kept, LayerPath, Meta, Node, SaveFile, Target, TargetError,
};

/// Hands everything on to a sound target, but for what the fault takes away.
pub(crate) struct LossyTarget {
    pub(crate) inner: Box<dyn Target>,
    pub(crate) fault: Fault,
}

impl LossyTarget {
    fn meta(&self, meta: &Meta) -> Meta {
        let mut meta = meta.clone();
        match self.fault {
            Fault::XattrsLost => meta.xattrs.clear(),
            Fault::TimesRounded => meta.mtime.nanoseconds = 0,
            Fault::SpecialBitsLost => meta.mode &= 0o777,
            Fault::OwnersLost => (meta.uid, meta.gid) = (0, 0),
            _ => {}
        }
        meta
    }

    fn forgets(&self, path: &LayerPath) -> bool {
        let odd = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"-._".contains(byte);
        let own: [&[u8]; 4] = [b"diff", b"work", b"lower", b"merged"];
        match self.fault {
            Fault::LongNamesForgotten => path.names().any(|name| name.len() > 254),
            Fault::OddNamesForgotten => path.names().any(|name| name.iter().any(odd)),
            Fault::OwnNamesForgotten => path.names().any(|name| own.contains(&name)),
            _ => false,
        }
    }
}

impl Target for LossyTarget {
    fn dir(&mut self, path: &LayerPath, meta: &Meta) -> Result<(), TargetError> {
        if self.forgets(path) || (self.fault == Fault::RootForgotten && path.is_root()) {
            return Ok(());
        }
        self.inner.dir(path, &self.meta(meta))
    }

    fn file(
        &mut self,
        path: &LayerPath,
        meta: &Meta,
        size: u64,
        data: &mut dyn FileData,
    ) -> Result<(), TargetError> {
        if self.forgets(path) {
            return Ok(());
        }
        let meta = self.meta(meta);
        match self.fault {
            Fault::HolesFilled => self.inner.file(path, &meta, size, &mut Filled::new(size)),
            Fault::ContentCut if size > 0 => {
                self.inner.file(path, &meta, size - 1, &mut Filled::new(size - 1))
            }
            _ => self.inner.file(path, &meta, size, data),
        }
    }

    fn symlink(&mut self, path: &LayerPath, meta: &Meta, text: &[u8]) -> Result<(), TargetError> {
        if self.forgets(path) || self.fault == Fault::LinksForgotten {
            return Ok(());
        }
        self.inner.symlink(path, &self.meta(meta), text)
    }

    fn hard_link(&mut self, path: &LayerPath, to: &LayerPath) -> Result<Kept, TargetError> {
        if self.fault == Fault::HardLinksForgotten {
            return Ok(Kept::Yes);
        }
        self.inner.hard_link(path, to)
    }

    fn node(&mut self, path: &LayerPath, meta: &Meta, node: Node) -> Result<Kept, TargetError> {
        if self.fault == Fault::NodesForgotten {
            return Ok(Kept::Yes);
        }
        self.inner.node(path, &self.meta(meta), node)
    }

    fn whiteout(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        if self.fault == Fault::WhiteoutsForgotten {
            return Ok(());
        }
        if self.fault == Fault::WhiteoutsShown {
            return self.inner.file(path, &Meta::default(), 0, &mut Filled::new(0));
        }
        self.inner.whiteout(path)
    }

    fn opaque(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        if self.fault == Fault::OpaqueForgotten {
            return Ok(());
        }
        self.inner.opaque(path)
    }

    fn replaced(&mut self, path: &LayerPath, save: &mut SaveFile<'_>) -> Result<(), TargetError> {
        self.inner.replaced(path, save)
    }

    fn finish(self: Box<Self>) -> Result<Finished, TargetError> {
        self.inner.finish()
    }
}

/// Zeros, as data.
struct Filled {
    size: Option<u64>,
    left: u64,
}

impl Filled {
    fn new(size: u64) -> Self {
        Self { size: Some(size), left: size }
    }
}

impl FileData for Filled {
    fn next_extent(&mut self) -> io::Result<Option<(u64, u64)>> {
        Ok(self.size.take().map(|size| (0, size)))
    }
}

impl Read for Filled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Filled {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        static ZEROS: [u8; 4096] = [0; 4096];
        Ok(&ZEROS[..usize::try_from(self.left.min(4096)).unwrap_or(4096)])
    }

    fn consume(&mut self, amount: usize) {
        self.left -= amount as u64;
    }
}
