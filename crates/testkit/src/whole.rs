//! A file's content in one piece, as a [`vellum_archive::target::Target`] takes it.

use std::io::{self, BufRead, Read};
use vellum_archive::target::FileData;

/// Data of one extent that begins at 0.
#[derive(Debug)]
pub struct Whole<R> {
    data: R,
    size: Option<u64>,
}

impl<R> Whole<R> {
    /// Of so many bytes, which `data` gives.
    pub fn new(data: R, size: u64) -> Self {
        Self { data, size: Some(size) }
    }
}

impl<'a> Whole<&'a [u8]> {
    /// Of these bytes.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self::new(bytes, bytes.len() as u64)
    }
}

impl<R: BufRead> FileData for Whole<R> {
    fn next_extent(&mut self) -> io::Result<Option<(u64, u64)>> {
        Ok(self.size.take().map(|size| (0, size)))
    }
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.data.read(buffer)
    }
}

impl<R: BufRead> BufRead for Whole<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.data.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.data.consume(amount);
    }
}
