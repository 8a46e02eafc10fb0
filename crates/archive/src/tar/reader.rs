//! The reader itself.

use super::header::{BLOCK, Format, Raw};
use super::pax::Records;
use super::sparse::{self, LineMap};
use super::{EntryKind, Header, Limits, Problem, TarError, shown};
use crate::target::FileData;
use std::io::{self, BufRead, Read};

/// Sees every byte of the archive that is not handed out as data: headers, padding, data that nobody took, and what comes after
/// the end.
pub trait Tap {
    /// The next such bytes.
    ///
    /// # Errors
    /// Ends the reading.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Tap for () {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a tar, entry by entry: [`Reader::next_entry`], then, if wanted, the data through [`BufRead`].
#[derive(Debug)]
pub struct Reader<R, T = ()> {
    input: R,
    tap: T,
    limits: Limits,
    position: u64,
    global: Records,
    entries: u64,
    /// Bytes of the entry's data not read yet.
    left: u64,
    padding: u64,
    /// Bytes of the current extent not read yet.
    run: u64,
    extents: std::vec::IntoIter<(u64, u64)>,
    offset: u64,
    ended: bool,
}

/// Room that is kept for the extension headers of one entry.
#[derive(Default)]
struct Pending {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    any: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads `input`, with a buffer of its own choice.
    pub fn new(input: R, limits: Limits) -> Self {
        Self::with_tap(input, limits, ())
    }
}

impl<R: BufRead, T: Tap> Reader<R, T> {
    /// Reads `input` and shows `tap` what is not data.
    pub fn with_tap(input: R, limits: Limits, tap: T) -> Self {
        Self {
            input,
            tap,
            limits,
            position: 0,
            global: Records::default(),
            entries: 0,
            left: 0,
            padding: 0,
            run: 0,
            extents: Vec::new().into_iter(),
            offset: 0,
            ended: false,
        }
    }

    /// The bytes read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The tap.
    pub fn tap(&mut self) -> &mut T {
        &mut self.tap
    }

    /// The input and the tap.
    pub fn into_parts(self) -> (R, T) {
        (self.input, self.tap)
    }

    fn fail(&self, name: Option<&[u8]>, problem: Problem) -> TarError {
        TarError { offset: self.offset, entry: name.map(shown), problem, source: None }
    }

    fn io(&self, source: io::Error) -> TarError {
        let problem =
            if source.kind() == io::ErrorKind::UnexpectedEof { Problem::Truncated } else { Problem::Read };
        TarError { offset: self.offset, entry: None, problem, source: Some(source) }
    }

    /// Passes `count` bytes to the tap; true if they were all there.
    fn pass(&mut self, mut count: u64) -> io::Result<bool> {
        while count > 0 {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(false);
            }
            let part = chunk.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.tap.raw(&chunk[..part])?;
            self.input.consume(part);
            self.position += part as u64;
            count -= part as u64;
        }
        Ok(true)
    }

    /// The next block; `None` at the end of the input.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut got = 0;
        while got < BLOCK {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                if got == 0 {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = chunk.len().min(BLOCK - got);
            block[got..got + part].copy_from_slice(&chunk[..part]);
            self.input.consume(part);
            got += part;
        }
        self.position += BLOCK as u64;
        self.tap.raw(&block)?;
        Ok(Some(block))
    }

    fn needed_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let block = self.block().map_err(|e| self.io(e))?;
        block.ok_or_else(|| self.fail(None, Problem::Truncated))
    }

    /// The next entry; `None` after the last. What is left of the last entry's data goes to the tap.
    ///
    /// # Errors
    /// The input's; the archive is damaged or exceeds a limit. Reading cannot go on after an error.
    pub fn next_entry(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        if !self.pass(self.left).map_err(|e| self.io(e))? {
            return Err(self.fail(None, Problem::Truncated));
        }
        // umoci's `insert` ends an archive where its last file's data end. Nothing is lost but zeros: Go's reader takes
        // that for the end, and so does this one.
        self.pass(self.padding).map_err(|e| self.io(e))?;
        (self.left, self.padding, self.run) = (0, 0, 0);
        self.extents = Vec::new().into_iter();
        self.offset = self.position;
        let mut pending = Pending::default();
        loop {
            if self.position > self.limits.total {
                return Err(self.fail(None, Problem::Limit("bytes")));
            }
            let Some(block) = self.block().map_err(|e| self.io(e))? else {
                return self.end(&pending);
            };
            if block.iter().all(|byte| *byte == 0) {
                let second = self.block().map_err(|e| self.io(e))?;
                if second.is_some_and(|block| block.iter().any(|byte| *byte != 0)) {
                    return Err(self.fail(None, Problem::Checksum));
                }
                return self.end(&pending);
            }
            let raw = Raw(&block);
            raw.check().map_err(|problem| self.fail(None, problem))?;
            let kind = raw.kind();
            match kind {
                b'x' | b'g' | b'L' | b'K' => self.extension(kind, &raw, &mut pending)?,
                _ => return self.entry(&raw, pending).map(Some),
            }
        }
    }

    fn end(&mut self, pending: &Pending) -> Result<Option<Header>, TarError> {
        if pending.any {
            return Err(self.fail(None, Problem::Truncated));
        }
        self.ended = true;
        // The rest has no meaning, but the digest is over all of it.
        let _ = self.pass(u64::MAX).map_err(|e| self.io(e))?;
        if self.position > self.limits.total {
            return Err(self.fail(None, Problem::Limit("bytes")));
        }
        Ok(None)
    }

    fn extension(&mut self, kind: u8, raw: &Raw<'_>, pending: &mut Pending) -> Result<(), TarError> {
        let size = raw.size().map_err(|problem| self.fail(None, problem))?;
        if size > self.limits.header {
            return Err(self.fail(None, Problem::Limit("bytes in an extension header")));
        }
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.input.read_exact(&mut data).map_err(|e| self.io(e))?;
        self.position += size;
        self.tap.raw(&data).map_err(|e| self.io(e))?;
        if !self.pass(padding(size)).map_err(|e| self.io(e))? {
            return Err(self.fail(None, Problem::Truncated));
        }
        let name = |data: &[u8]| super::header::until_nul(data).to_vec();
        match kind {
            b'L' => pending.name = Some(name(&data)),
            b'K' => pending.link = Some(name(&data)),
            b'g' => {
                let limits = self.limits;
                self.global.read(&data, &limits).map_err(|problem| self.fail(None, problem))?;
                return Ok(());
            }
            _ => {
                let records = pending.records.get_or_insert_with(|| self.global.clone());
                let result = records.read(&data, &self.limits);
                result.map_err(|problem| self.fail(None, problem))?;
            }
        }
        pending.any = true;
        Ok(())
    }

    fn entry(&mut self, raw: &Raw<'_>, pending: Pending) -> Result<Header, TarError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.fail(None, Problem::Limit("entries")));
        }
        let mut records = pending.records.unwrap_or_else(|| self.global.clone());
        let plain = raw.path();
        let name = records.sparse.name.take().or(records.path.take()).or(pending.name);
        let shown_name = name.clone().unwrap_or(plain);
        let fail = |this: &Self, problem| this.fail(Some(&shown_name), problem);
        let kind = kind_of(raw, &shown_name).map_err(|problem| fail(self, problem))?;
        let mut header = raw.header(kind, self.offset).map_err(|problem| fail(self, problem))?;
        if let Some(name) = name {
            header.path = name;
        }
        if let Some(link) = records.link.take().or(pending.link) {
            header.link = link;
        }
        header.uid = records.uid.unwrap_or(header.uid);
        header.gid = records.gid.unwrap_or(header.gid);
        header.mtime = records.mtime.unwrap_or(header.mtime);
        header.xattrs = records.take_xattrs();
        header.stored = records.size.unwrap_or(header.size);
        header.size = header.stored;
        // 'D' lists a directory's names in its data; other directories, links and devices have none.
        if kind != EntryKind::File && raw.kind() != b'D' {
            (header.size, header.stored) = (0, 0);
        }
        self.left = header.stored;
        self.padding = padding(header.stored);
        self.map(raw, &records, &mut header).map_err(|mut error| {
            error.entry.get_or_insert_with(|| shown(&shown_name));
            error
        })?;
        if self.position.saturating_add(header.stored) > self.limits.total {
            return Err(fail(self, Problem::Limit("bytes")));
        }
        header.data_offset = self.position;
        self.extents = match &header.extents {
            Some(extents) => extents.clone().into_iter(),
            None => vec![(0, header.stored)].into_iter(),
        };
        Ok(header)
    }

    /// Reads a sparse file's map, wherever it is.
    fn map(&mut self, raw: &Raw<'_>, records: &Records, header: &mut Header) -> Result<(), TarError> {
        let limits = self.limits;
        let fail = |this: &Self, problem| this.fail(None, problem);
        let sparse = &records.sparse;
        let map = if raw.kind() == b'S' && raw.format() == Format::Gnu {
            let mut map = Vec::new();
            sparse::gnu_entries(&raw.0[386..482], &mut map, &limits).map_err(|p| fail(self, p))?;
            let size = super::header::number(&raw.0[483..495], "size").map_err(|p| fail(self, p))?;
            header.size = u64::try_from(size).map_err(|_| fail(self, Problem::Field("size")))?;
            let mut more = raw.0[482] != 0;
            while more {
                let block = self.needed_block()?;
                sparse::gnu_entries(&block[..504], &mut map, &limits).map_err(|p| fail(self, p))?;
                more = block[504] != 0;
            }
            map
        } else if header.kind == EntryKind::File && (sparse.major, sparse.minor) == (Some(1), Some(0)) {
            let mut lines = LineMap::default();
            loop {
                if self.left < BLOCK as u64 {
                    return Err(fail(self, Problem::Sparse("it is longer than the data")));
                }
                let block = self.needed_block()?;
                self.left -= BLOCK as u64;
                header.stored -= BLOCK as u64;
                if lines.block(&block, &limits).map_err(|p| fail(self, p))? {
                    break;
                }
            }
            header.size = sparse.size.ok_or_else(|| fail(self, Problem::Field("sparse size")))?;
            lines.map()
        } else if let (EntryKind::File, Some(map)) = (header.kind, &sparse.map) {
            header.size = sparse.size.ok_or_else(|| fail(self, Problem::Field("sparse size")))?;
            map.clone()
        } else {
            return Ok(());
        };
        let checked = sparse::checked(map, header.size, header.stored, &limits);
        header.extents = Some(checked.map_err(|p| fail(self, p))?);
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn kind_of(raw: &Raw<'_>, name: &[u8]) -> Result<EntryKind, Problem> {
    Ok(match raw.kind() {
        // Before ustar a directory was a file with a slash at the end.
        0 if name.ends_with(b"/") => EntryKind::Dir,
        0 | b'0' | b'7' => EntryKind::File,
        b'S' if raw.format() == Format::Gnu => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Char,
        b'4' => EntryKind::Block,
        b'5' | b'D' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        other => return Err(Problem::Type(other)),
    })
}

impl<R: BufRead, T: Tap> Read for Reader<R, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let part = chunk.len().min(buffer.len());
        buffer[..part].copy_from_slice(&chunk[..part]);
        self.consume(part);
        Ok(part)
    }
}

/// The entry's data as it is stored. A sparse file's holes are not in it: [`FileData::next_extent`] tells where the parts belong.
impl<R: BufRead, T: Tap> BufRead for Reader<R, T> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.run == 0 {
            // Plain reading goes from one run to the next by itself.
            match self.extents.next() {
                Some((_, length)) => self.run = length,
                None => return Ok(&[]),
            }
        }
        let most = usize::try_from(self.run).unwrap_or(usize::MAX);
        let chunk = self.input.fill_buf()?;
        if chunk.is_empty() && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early"));
        }
        Ok(&chunk[..chunk.len().min(most)])
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.position += count as u64;
        self.run -= count as u64;
        self.left -= count as u64;
    }
}

impl<R: BufRead, T: Tap> FileData for Reader<R, T> {
    fn next_extent(&mut self) -> io::Result<Option<(u64, u64)>> {
        if self.run > 0 {
            return Err(io::Error::other("the last run of data was not read to its end"));
        }
        let next = self.extents.next();
        self.run = next.map_or(0, |(_, length)| length);
        Ok(next)
    }
}
