//! Digests and the identifiers that are digests.

use crate::{ParseError, serde_as_text};
use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// A digest's algorithm, of those the OCI image specification registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The number of bytes of a digest.
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A digest of some bytes (OCI image specification, "Descriptors: Digests").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 64],
}

impl Digest {
    /// The SHA-256 digest of `data`.
    pub fn sha256(data: &[u8]) -> Self {
        Self::from_sha256(sha2::Sha256::digest(data).into())
    }

    /// A digest that was computed elsewhere.
    pub fn from_sha256(raw: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&raw);
        Self { algorithm: Algorithm::Sha256, bytes }
    }

    /// A digest that was computed elsewhere.
    pub fn from_sha512(bytes: [u8; 64]) -> Self {
        Self { algorithm: Algorithm::Sha512, bytes }
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// The hexadecimal part alone: what blobs are named by.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut out = String::with_capacity(self.algorithm.size() * 2);
        for byte in self.as_bytes() {
            out.push(DIGITS[usize::from(byte >> 4)] as char);
            out.push(DIGITS[usize::from(byte & 15)] as char);
        }
        out
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |reason| ParseError::new("digest", text, reason);
        let (name, hex) = text.split_once(':').ok_or_else(|| error("no ':' after the algorithm"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(error("the algorithm must be sha256 or sha512")),
        };
        if hex.len() != algorithm.size() * 2 {
            return Err(error("wrong number of hexadecimal digits"));
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Some(c - b'0'),
                b'a'..=b'f' => Some(c - b'a' + 10),
                _ => None,
            };
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(error("not lower-case hexadecimal")),
            }
        }
        Ok(Self { algorithm, bytes })
    }
}

serde_as_text!(Digest);

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Digest);

        impl $name {
            /// The digest itself.
            pub fn digest(&self) -> &Digest {
                &self.0
            }
        }

        impl From<Digest> for $name {
            fn from(digest: Digest) -> Self {
                Self(digest)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                text.parse().map(Self)
            }
        }

        serde_as_text!($name);
    };
}

digest_newtype! {
    /// The digest of a layer's uncompressed tar: `rootfs.diff_ids` of an image's configuration.
    DiffId
}
digest_newtype! {
    /// A layer on top of all layers below it (OCI image specification, "Layer ChainID").
    ///
    /// Two images share a layer on disk exactly when its chain ID is the same.
    ChainId
}
digest_newtype! {
    /// An image: the digest of its configuration's bytes (OCI image specification, "ImageID").
    ImageId
}

impl ChainId {
    /// The chain ID of `diff` on top of `parent`:
    /// `ChainID(L0) = DiffID(L0)`, `ChainID(L0|..|Ln) = SHA256(ChainID(L0|..|Ln-1) + " " + DiffID(Ln))`.
    pub fn of(parent: Option<&ChainId>, diff: &DiffId) -> Self {
        match parent {
            None => Self(diff.0),
            Some(parent) => Self(Digest::sha256(format!("{parent} {diff}").as_bytes())),
        }
    }

    /// The chain IDs of all layers of an image, the base's first.
    pub fn chain(diffs: &[DiffId]) -> Vec<Self> {
        let mut chain = Vec::with_capacity(diffs.len());
        for diff in diffs {
            chain.push(Self::of(chain.last(), diff));
        }
        chain
    }
}

impl ImageId {
    /// The id of the image with this configuration.
    pub fn of(configuration: &[u8]) -> Self {
        Self(Digest::sha256(configuration))
    }

    /// The first twelve hexadecimal digits, as people see it.
    pub fn short(&self) -> String {
        self.0.hex()[..12].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_checked() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in ["", "sha256", "sha256:", "md5:00", &good[..70], &good.to_uppercase(), &format!("{good}0")]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let upper = format!("sha256:{}", "0A".repeat(32));
        assert_eq!(upper.parse::<Digest>().unwrap_err().reason, "not lower-case hexadecimal");
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let a: DiffId = Digest::sha256(b"a").into();
        let b: DiffId = Digest::sha256(b"b").into();
        let chain = ChainId::chain(&[a, b]);
        assert_eq!(chain[0].digest(), a.digest());
        assert_eq!(*chain[1].digest(), Digest::sha256(format!("{a} {b}").as_bytes()));
    }
}
