//! A flipped bit in the log.
//!
//! SQLite takes a frame of the log whose checksum is wrong for one that a power cut tore, and reads the log only up to the commit before it: what follows would be lost though it was synced.
//! What a power cut tears is hardly ever one bit away from being right, by the checksum's 64 bits; where it is, all of that commit was written, and taking it as made is no worse than taking it as lost. So the first frame that is not sound is looked at more closely:
//!
//! 1. Its salts are one bit from the log's: that bit was flipped.
//! 2. Its checksum is one bit from what is computed, or a bit of its content would give the checksum. The sums are linear in the content, modulo 2³², so what a bit is worth follows
//!    from the words behind it, and one pass over the frame tries them all.
//! 3. Of the uppermost bits of words many are worth the same. The checksum of the next frame, which goes on from this one's, tells whether it is the checksum; where more than one bit is left, a bit
//!    was flipped, and which one is not known.
//!
//! The same for the header. What comes after the end of the log is of an older one, with other salts, and more than a bit away; so is what a killed writer left.
//!
//! **Lock rule**: the lock of writers is held, so the log does not change meanwhile. Whoever has it open knows where its frames are and notices nothing.

use crate::{Error, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use vellum_sys::lock::FileLock;

/// Of the log's format (<https://www.sqlite.org/fileformat2.html#the_write_ahead_log>).
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// A bit of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bit {
    byte: usize,
    bit: u32,
}

/// A part of the log in which a bit is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flip {
    at: usize,
    length: usize,
    which: Option<Bit>,
}

impl Flip {
    /// Whether it is known which bit it is, so that it can be flipped back.
    pub(crate) fn is_known(self) -> bool {
        self.which.is_some()
    }

    fn of(at: usize, length: usize, candidates: &[Bit]) -> Option<Self> {
        let which = if let [one] = candidates { Some(*one) } else { None };
        (!candidates.is_empty()).then_some(Self { at, length, which })
    }
}

impl std::fmt::Display for Flip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.which {
            Some(Bit { byte, bit }) => write!(f, "bit {bit} of byte {byte} of catalog.db-wal was flipped"),
            None => write!(
                f,
                "a bit of the {} bytes from byte {} of catalog.db-wal was flipped",
                self.length, self.at
            ),
        }
    }
}

/// Looks for a flipped bit in the log of a catalog, and with `repair` flips it back if it is known. To be asked before SQLite opens the catalog. Reads the whole log.
///
/// # Errors
/// The file system's.
pub(crate) fn look(catalog: &Path, write_lock: &Path, repair: bool) -> Result<Option<Flip>> {
    // Where it cannot be taken (a file system for reading only), nothing is looked at; whoever opens the store says what is wrong.
    let Ok(_lock) = FileLock::exclusive(write_lock) else { return Ok(None) };
    let path = super::room::beside(catalog, "-wal");
    let mut log = match std::fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|e| Error::io("read the catalog's log", &path, e))?,
    };
    let Some(flip) = find(&log) else { return Ok(None) };
    if let (true, Some(Bit { byte, bit })) = (repair, flip.which) {
        log[byte] ^= 1 << bit;
        let write = || {
            let file = File::options().write(true).open(&path)?;
            file.write_all_at(&log[byte..=byte], byte as u64)?;
            file.sync_data()
        };
        write().map_err(|e| Error::io("mend the catalog's log", &path, e))?;
    }
    Ok(Some(flip))
}

/// The sums of a log's checksum, each in 32 bits.
type Sums = (u32, u32);

/// How a log's words are to be read for its checksum.
#[derive(Debug, Clone, Copy)]
struct Order {
    little: bool,
}

impl Order {
    fn word(self, bytes: &[u8]) -> u32 {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    }

    /// The byte of a word, and the bit in it, that are worth 2 to the power of this.
    fn place(self, power: u32) -> (usize, u32) {
        let byte = (power / 8) as usize;
        (if self.little { byte } else { 3 - byte }, power % 8)
    }

    fn add(self, sums: Sums, bytes: &[u8]) -> Sums {
        bytes.chunks_exact(8).fold(sums, |(first, second), pair| {
            let first = first.wrapping_add(self.word(pair)).wrapping_add(second);
            (first, second.wrapping_add(self.word(&pair[4..])).wrapping_add(first))
        })
    }

    /// Which bits of these bytes would make the sums differ by so much: the byte, and the bit in it.
    fn worth(self, bytes: &[u8], lacks: Sums) -> Vec<(usize, u32)> {
        let mut bits = Vec::new();
        // What one more in the first and in the second word of a pair adds to the sums at the end.
        let mut worth: [Sums; 2] = [(1, 1), (0, 1)];
        for (number, pair) in bytes.chunks_exact(8).enumerate().rev() {
            for (half, worth) in worth.iter().enumerate() {
                let word = self.word(&pair[half * 4..]);
                let fits = |power: &u32| {
                    let one = 1_u32 << power;
                    let delta = if word & one == 0 { one } else { one.wrapping_neg() };
                    (worth.0.wrapping_mul(delta), worth.1.wrapping_mul(delta)) == lacks
                };
                bits.extend((0..32).filter(fits).map(|power| {
                    let (byte, bit) = self.place(power);
                    (number * 8 + half * 4 + byte, bit)
                }));
            }
            // Another pair follows those before it.
            worth = worth.map(|(first, second)| {
                let sum = first.wrapping_add(second);
                (sum, sum.wrapping_add(second))
            });
        }
        bits
    }
}

/// The one bit in which two strings of bytes differ.
fn one_bit(written: &[u8], wanted: &[u8]) -> Option<(usize, u32)> {
    let mut differences = written.iter().zip(wanted).enumerate().filter(|(_, (a, b))| a != b);
    let (byte, (a, b)) = differences.next()?;
    ((a ^ b).is_power_of_two() && differences.next().is_none()).then(|| (byte, (a ^ b).trailing_zeros()))
}

/// The bytes of sums as they are kept.
fn kept((first, second): Sums) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_be_bytes());
    bytes[4..].copy_from_slice(&second.to_be_bytes());
    bytes
}

fn sums(bytes: &[u8]) -> Sums {
    let big = Order { little: false };
    (big.word(bytes), big.word(&bytes[4..]))
}

/// What is summed up: content in two pieces, each with its place, and the sums as they are kept, with theirs.
struct Summed<'a> {
    pieces: [(usize, &'a [u8]); 2],
    kept: &'a [u8],
    place: usize,
}

impl Summed<'_> {
    fn sums(&self, order: Order, before: Sums) -> Sums {
        self.pieces.iter().fold(before, |sums, (_, piece)| order.add(sums, piece))
    }

    /// The bits of the kept sums, and of the content, of which each would make it sound.
    fn candidates(&self, order: Order, before: Sums) -> [Vec<Bit>; 2] {
        let computed = self.sums(order, before);
        let in_sums =
            one_bit(self.kept, &kept(computed)).map(|(byte, bit)| Bit { byte: self.place + byte, bit });
        let wanted = sums(self.kept);
        let lacks = (wanted.0.wrapping_sub(computed.0), wanted.1.wrapping_sub(computed.1));
        let [(first_at, first), (second_at, second)] = self.pieces;
        let placed = |(byte, bit): (usize, u32)| match byte.checked_sub(first.len()) {
            None => Bit { byte: first_at + byte, bit },
            Some(byte) => Bit { byte: second_at + byte, bit },
        };
        let in_content = order.worth(&[first, second].concat(), lacks).into_iter().map(placed);
        [in_sums.into_iter().collect(), in_content.collect()]
    }
}

/// A log whose header is sound.
struct Frames<'a> {
    log: &'a [u8],
    order: Order,
    salts: &'a [u8],
    /// Of a frame.
    length: usize,
}

impl<'a> Frames<'a> {
    fn of(log: &'a [u8]) -> Option<Self> {
        let header = log.get(..HEADER)?;
        let magic = Order { little: false }.word(header);
        let order = Order { little: magic == MAGIC };
        let page = usize::try_from(Order { little: false }.word(&header[8..])).ok()?;
        let sound = magic & !1 == MAGIC
            && page.is_power_of_two()
            && (512..=65536).contains(&page)
            && kept(order.add((0, 0), &header[..24])) == header[24..];
        sound.then_some(Self { log, order, salts: &header[16..24], length: FRAME_HEADER + page })
    }

    fn at(&self, at: usize) -> Option<(Summed<'a>, &'a [u8])> {
        let frame = self.log.get(at..at + self.length)?;
        let pieces = [(at, &frame[..8]), (at + FRAME_HEADER, &frame[FRAME_HEADER..])];
        Some((Summed { pieces, kept: &frame[16..24], place: at + 16 }, &frame[8..16]))
    }

    fn is_sound(&self, at: usize, before: Sums) -> bool {
        self.at(at).is_some_and(|(frame, salts)| {
            salts == self.salts && frame.kept == kept(frame.sums(self.order, before))
        })
    }

    /// The flipped bit in the first frame that is not sound, if there is one.
    fn find(&self) -> Option<Flip> {
        let (mut at, mut before) = (HEADER, sums(self.log.get(24..HEADER)?));
        loop {
            let (frame, salts) = self.at(at)?;
            let computed = frame.sums(self.order, before);
            let candidates = match (salts == self.salts, frame.kept == kept(computed)) {
                (true, true) => {
                    (at, before) = (at + self.length, computed);
                    continue;
                }
                (false, true) => {
                    let (byte, bit) = one_bit(salts, self.salts)?;
                    vec![Bit { byte: at + 8 + byte, bit }]
                }
                (true, false) => {
                    let [in_sums, in_content] = frame.candidates(self.order, before);
                    let next = at + self.length;
                    if self.is_sound(next, computed) {
                        in_sums
                    } else if self.is_sound(next, sums(frame.kept)) {
                        in_content
                    } else {
                        [in_sums, in_content].concat()
                    }
                }
                (false, false) => return None,
            };
            return Flip::of(at, self.length, &candidates);
        }
    }
}

fn find(log: &[u8]) -> Option<Flip> {
    let header = log.get(..HEADER).filter(|header| header.iter().any(|byte| *byte != 0))?;
    if let Some(frames) = Frames::of(log) {
        return frames.find();
    }
    // Which order its sums are in is told by a bit that may be the one: both are tried, and what makes a log of it whose first frame is sound.
    let summed = Summed { pieces: [(0, &header[..24]), (24, &[])], kept: &header[24..], place: 24 };
    let all = [true, false].map(|little| summed.candidates(Order { little }, (0, 0)).concat()).concat();
    let mends = |Bit { byte, bit }: &Bit| {
        let mut mended = log[..log.len().min(HEADER + FRAME_HEADER + 65536)].to_vec();
        mended[*byte] ^= 1 << bit;
        Frames::of(&mended).is_some_and(|frames| frames.is_sound(HEADER, sums(&mended[24..])))
    };
    Flip::of(0, HEADER, &all.into_iter().filter(mends).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// A log of several commits, with frames of an older one behind its end; and how long it is.
    fn log(folder: &Path) -> (Vec<u8>, usize) {
        let path = folder.join("c.db");
        let connection = Connection::open(&path).unwrap();
        let run = |sql: &str| connection.execute_batch(sql).unwrap();
        run("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (a, b);");
        let insert = |n: u32| run(&format!("INSERT INTO t VALUES ({n}, randomblob(3000))"));
        (0..9).for_each(insert);
        run("PRAGMA wal_checkpoint(PASSIVE);");
        (0..3).for_each(insert);
        let log = std::fs::read(super::super::room::beside(&path, "-wal")).unwrap();
        let frame = FRAME_HEADER + 4096;
        let own = |number: &usize| log[HEADER + number * frame + 8..][..8] == log[16..24];
        let frames = (0..(log.len() - HEADER) / frame).take_while(own).count();
        assert!(frames > 3 && log.len() > HEADER + (frames + 2) * frame, "nothing of an older log is left");
        (log, HEADER + frames * frame)
    }

    #[test]
    fn plain_every_flipped_bit_is_found_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (log, length) = log(folder.path());
        assert_eq!(find(&log), None);
        let (mut known, mut tried) = (0, 0);
        // All of the header's and of two frames' headers, and some of all others.
        let bits = (0..HEADER * 8).chain((HEADER..length).flat_map(|byte| {
            let near = (byte - HEADER) % (FRAME_HEADER + 4096) < FRAME_HEADER && byte < HEADER + 2 * 4120;
            (0..8).filter(move |bit| near || (byte * 8 + bit) % 211 == 0).map(move |bit| byte * 8 + bit)
        }));
        for place in bits {
            let mut log = log.clone();
            log[place / 8] ^= 1 << (place % 8);
            let found = find(&log);
            let is_it = found.is_some_and(|flip| match flip.which {
                Some(which) => which == Bit { byte: place / 8, bit: (place % 8) as u32 },
                None => (flip.at..flip.at + flip.length).contains(&(place / 8)),
            });
            assert!(is_it, "bit {} of byte {}: {found:?}", place % 8, place / 8);
            known += u32::from(found.is_some_and(Flip::is_known));
            tried += 1;
        }
        assert!(known * 10 > tried * 7, "{known} of {tried} are known");
    }

    #[test]
    fn plain_what_a_power_cut_tears_is_no_flipped_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (log, length) = log(folder.path());
        for (from, to) in [
            (length - 4096, length),
            (length - 4120, length - 4096),
            (length - 2048, length),
            (HEADER + 4120 + 512, HEADER + 4120 + 1024),
        ] {
            let mut torn = log.clone();
            torn[from..to].fill(0);
            assert_eq!(find(&torn), None, "{from} to {to}");
        }
        assert_eq!(find(&log[..length - 1000]), None);
        assert_eq!(find(&[0; 8192]), None);
        assert_eq!(find(&[]), None);
    }
}
