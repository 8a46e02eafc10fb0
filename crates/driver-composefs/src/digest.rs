//! The name of an object: the fs-verity digest of its content (kernel: `Documentation/filesystems/fsverity.rst`, "fs-verity descriptor", "Merkle tree").
//!
//! SHA-256 over blocks of 4 KiB, the hashes packed into blocks and hashed again until one is left; then over a descriptor that holds that root and the length. It can be
//! computed from a stream, and a file system with fs-verity computes the same. Runs of zeros cost next to nothing: their hashes are known.

use sha2::{Digest as _, Sha256};
use std::fmt;

const BLOCK: usize = 4096;
const HASH: usize = 32;
/// Hashes in a block of the level above.
const FAN: u64 = (BLOCK / HASH) as u64;
/// More than 2^64 bytes need.
const LEVELS: usize = 10;

/// An object's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest(pub(crate) [u8; HASH]);

impl Digest {
    /// The folder and the name in it: `ab/cdef…`, as composefs has it.
    pub(crate) fn path(&self) -> String {
        let hex = self.to_string();
        format!("{}/{}", &hex[..2], &hex[2..])
    }

    /// The inverse of [`Digest::path`].
    pub(crate) fn of_path(folder: &str, name: &str) -> Option<Self> {
        let hex = [folder, name].concat();
        if folder.len() != 2
            || hex.len() != 2 * HASH
            || !hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        let mut bytes = [0; HASH];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a digest from a stream.
pub(crate) struct Hasher {
    /// What is not hashed yet of each level; the first is the content itself.
    levels: Vec<Vec<u8>>,
    length: u64,
    /// Hashes of blocks of zeros, of blocks of those, and so on, as far as they were asked for.
    zeros: Vec<[u8; HASH]>,
}

fn hash(block: &[u8]) -> [u8; HASH] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut sha = Sha256::new();
    sha.update(block);
    sha.update(&ZEROS[block.len()..]);
    sha.finalize().into()
}

impl Hasher {
    pub(crate) fn new() -> Self {
        Self { levels: vec![Vec::with_capacity(BLOCK)], length: 0, zeros: Vec::new() }
    }

    pub(crate) fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Self::new();
        hasher.update(bytes);
        hasher.finish()
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        // A block is hashed only when it is known whether more follows: a lone one is the root itself.
        while !bytes.is_empty() {
            if self.levels[0].is_empty() && bytes.len() >= BLOCK {
                let digest = hash(&bytes[..BLOCK]);
                self.push(1, digest);
                bytes = &bytes[BLOCK..];
                continue;
            }
            let part = bytes.len().min(BLOCK - self.levels[0].len());
            self.levels[0].extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if self.levels[0].len() == BLOCK {
                let digest = hash(&self.levels[0]);
                self.levels[0].clear();
                self.push(1, digest);
            }
        }
    }

    /// As many zeros.
    pub(crate) fn update_zeros(&mut self, mut count: u64) {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while count > 0 {
            let to_block = (BLOCK - self.levels[0].len()) as u64;
            if !self.levels[0].is_empty() || count < BLOCK as u64 {
                let part = count.min(to_block);
                self.update(&ZEROS[..part as usize]);
                count -= part;
                continue;
            }
            // The largest run for which a whole block of some level is known.
            let (mut level, mut run) = (1, BLOCK as u64);
            while level < LEVELS
                && self.levels.get(level).is_none_or(Vec::is_empty)
                && run.checked_mul(FAN).is_some_and(|more| more <= count)
            {
                (level, run) = (level + 1, run * FAN);
            }
            let digest = self.zero(level);
            self.length += run;
            count -= run;
            self.push(level, digest);
        }
    }

    /// The hash that stands in `level` for a run of zeros.
    fn zero(&mut self, level: usize) -> [u8; HASH] {
        while self.zeros.len() < level {
            let next = match self.zeros.last() {
                None => hash(&[]),
                Some(below) => hash(&below.repeat(FAN as usize)),
            };
            self.zeros.push(next);
        }
        self.zeros[level - 1]
    }

    fn push(&mut self, level: usize, digest: [u8; HASH]) {
        while self.levels.len() <= level {
            self.levels.push(Vec::new());
        }
        // What is full is hashed when more comes: the root is never full and alone.
        if self.levels[level].len() == BLOCK {
            let above = hash(&self.levels[level]);
            self.levels[level].clear();
            self.push(level + 1, above);
        }
        self.levels[level].extend_from_slice(&digest);
    }

    pub(crate) fn finish(mut self) -> Digest {
        let mut root = [0; HASH];
        if self.length > 0 {
            if !self.levels[0].is_empty() {
                let digest = hash(&std::mem::take(&mut self.levels[0]));
                self.push(1, digest);
            }
            let mut level = 1;
            loop {
                let only = self.levels[level].len() == HASH;
                if only && self.levels[level + 1..].iter().all(Vec::is_empty) {
                    root.copy_from_slice(&self.levels[level]);
                    break;
                }
                if !self.levels[level].is_empty() {
                    let above = hash(&std::mem::take(&mut self.levels[level]));
                    self.push(level + 1, above);
                }
                level += 1;
            }
        }
        let mut descriptor = [0; 256];
        (descriptor[0], descriptor[1], descriptor[2]) = (1, 1, BLOCK.trailing_zeros() as u8);
        descriptor[8..16].copy_from_slice(&self.length.to_le_bytes());
        descriptor[16..16 + HASH].copy_from_slice(&root);
        Digest(Sha256::digest(descriptor).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain algorithm, with everything in memory.
    fn plain(bytes: &[u8]) -> Digest {
        let mut level: Vec<[u8; HASH]> = bytes.chunks(BLOCK).map(hash).collect();
        while level.len() > 1 {
            let bytes = level.concat();
            level = bytes.chunks(BLOCK).map(hash).collect();
        }
        let mut descriptor = [0; 256];
        descriptor[..3].copy_from_slice(&[1, 1, 12]);
        descriptor[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        descriptor[16..48].copy_from_slice(&level.first().copied().unwrap_or_default());
        Digest(Sha256::digest(descriptor).into())
    }

    #[test]
    fn plain_known_digests() {
        // `fsverity digest` of an empty file, and of "hello\n".
        let known = [
            (&b""[..], "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
            (&b"hello\n"[..], "9c76eecc7b76fcb46199cb27b90cf59a660e10575bb0412128905129d5b1c2aa"),
        ];
        for (content, expected) in known {
            assert_eq!(Hasher::of(content).to_string(), expected);
        }
    }

    #[test]
    fn plain_streams_and_holes_give_what_the_plain_algorithm_gives() {
        let lengths = [0, 1, 4095, 4096, 4097, 8192, 128 * 4096, 128 * 4096 + 1, 129 * 4096, 300 * 4096 + 7];
        for length in lengths {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8 | 1).collect();
            assert_eq!(Hasher::of(&bytes), plain(&bytes), "{length}");
            let mut hasher = Hasher::new();
            bytes.chunks(1000).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), plain(&bytes), "{length} in parts");
            for before in [0, 5, 4096] {
                let (head, tail) = (&bytes[..before.min(length)], b"end");
                let whole = [head, &vec![0; length][..], tail].concat();
                let mut hasher = Hasher::new();
                hasher.update(head);
                hasher.update_zeros(length as u64);
                hasher.update(tail);
                assert_eq!(hasher.finish(), plain(&whole), "{length} zeros after {before}");
            }
        }
        let zeros = vec![0; 129 * 128 * 4096];
        let mut hasher = Hasher::new();
        hasher.update_zeros(zeros.len() as u64);
        assert_eq!(hasher.finish(), plain(&zeros));
    }

    #[test]
    fn plain_paths_round_trip() {
        let digest = Hasher::of(b"x");
        let path = digest.path();
        let (folder, name) = path.split_once('/').unwrap();
        assert_eq!(Digest::of_path(folder, name), Some(digest));
        for (folder, name) in [("ab", "cd"), ("a", name), ("..", name), ("AB", name)] {
            assert_eq!(Digest::of_path(folder, name), None);
        }
    }
}
