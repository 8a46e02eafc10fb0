//! A layer is read and decompressed in one thread while another applies what came out before.
//!
//! Where layers can only be unpacked one after the other (their tree begins as their parent's, as with snapshots), this is what keeps a second core busy: reading, hashing and
//! decompressing take about as long as applying. The other way, to unpack each layer by itself and then join it by reflinks, would make every file twice.
//!
//! Buffers go round between the two threads: [`DEPTH`] of [`BUFFER`] bytes at most, whatever the layer's size.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// In flight at once.
const DEPTH: usize = 4;
const BUFFER: usize = 256 << 10;

/// The receiving end, as what is read.
struct Ahead {
    filled: Receiver<io::Result<Vec<u8>>>,
    /// Where buffers go back to.
    empty: SyncSender<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
}

/// Reads `input` to its end, or as far as `work` wants, in a thread of its own, and has `work` read what came out. An error of the input is met by `work` where it
/// was met in the stream.
pub(super) fn read_ahead<T>(input: &mut (dyn Read + Send), work: impl FnOnce(&mut dyn Read) -> T) -> T {
    std::thread::scope(|scope| {
        let (to, filled) = sync_channel(DEPTH);
        let (empty, from) = sync_channel(DEPTH + 1);
        // The sending end for who reads is there first: with it go as many buffers as there are.
        for _ in 0..DEPTH {
            // There is room for all.
            let _ = empty.send(Vec::with_capacity(BUFFER));
        }
        scope.spawn(move || fill(input, &from, &to));
        // Dropped before the thread is waited for, which ends then.
        let mut ahead = Ahead { filled, empty, now: Vec::new(), at: 0 };
        work(&mut ahead)
    })
}

/// Fills buffers until the input ends or fails, or nobody wants more.
fn fill(input: &mut (dyn Read + Send), from: &Receiver<Vec<u8>>, to: &SyncSender<io::Result<Vec<u8>>>) {
    while let Ok(mut buffer) = from.recv() {
        buffer.clear();
        // Decoders give little at a time; the other thread is woken for whole buffers.
        let result = (&mut *input).take(BUFFER as u64).read_to_end(&mut buffer);
        let ended = !matches!(result, Ok(got) if got > 0);
        if !buffer.is_empty() && to.send(Ok(buffer)).is_err() {
            return;
        }
        if let Err(error) = result {
            let _ = to.send(Err(error));
        }
        if ended {
            return;
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.now.len() {
            let used = std::mem::take(&mut self.now);
            if used.capacity() > 0 {
                // Nobody takes it back when the input has ended.
                let _ = self.empty.try_send(used);
            }
            self.at = 0;
            match self.filled.recv() {
                Ok(Ok(buffer)) => self.now = buffer,
                Ok(Err(error)) => return Err(error),
                // The thread has ended: so has the input.
                Err(_) => return Ok(0),
            }
        }
        let rest = self.now.get(self.at..).unwrap_or_default();
        let got = rest.len().min(out.len());
        out[..got].copy_from_slice(&rest[..got]);
        self.at += got;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives bytes in pieces of all sizes, and fails, ends or panics after so many.
    struct Source {
        next: usize,
        length: usize,
        fails: bool,
    }

    fn byte(at: usize) -> u8 {
        (at % 251) as u8
    }

    impl Read for Source {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let got = out.len().min(self.length - self.next).min(1 + self.next % 10_000);
            if got == 0 && self.fails {
                return Err(io::Error::from_raw_os_error(5));
            }
            out[..got].iter_mut().for_each(|slot| {
                *slot = byte(self.next);
                self.next += 1;
            });
            Ok(got)
        }
    }

    #[test]
    fn plain_what_is_read_ahead_is_what_was_there() {
        for length in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3_000_000] {
            let mut source = Source { next: 0, length, fails: false };
            let mut found = Vec::new();
            let got = read_ahead(&mut source, |input| input.read_to_end(&mut found));
            assert_eq!(got.unwrap(), length);
            assert!(found.iter().enumerate().all(|(at, found)| *found == byte(at)));
        }
    }

    #[test]
    fn plain_an_error_comes_after_what_was_read_before_it_and_who_stops_early_does_not_hang() {
        let length = 2_000_000;
        let mut source = Source { next: 0, length, fails: true };
        let mut found = Vec::new();
        let error = read_ahead(&mut source, |input| input.read_to_end(&mut found)).unwrap_err();
        assert_eq!((error.raw_os_error(), found.len()), (Some(5), length));

        let mut source = Source { next: 0, length: usize::MAX, fails: false };
        let mut few = [0; 10];
        read_ahead(&mut source, |input| input.read_exact(&mut few)).unwrap();
        assert_eq!(few[9], 9);
    }
}
