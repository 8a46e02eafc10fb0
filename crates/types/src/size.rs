//! Sizes as people write them.

use crate::ParseError;
use std::fmt;
use std::str::FromStr;

/// A number of bytes, at least one. Written as a number, possibly with `k`, `M`, `G` or `T`, which are powers of 1024 whatever follows (`10G`, `10Gi`, `10GiB`, `10gb`):
/// so docker, Kubernetes and containerd's labels have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    /// In bytes, without a unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Size {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |reason| ParseError::new("size", text, reason);
        let lower = text.trim().to_ascii_lowercase();
        let short = ["ib", "i", "b"].iter().find_map(|end| lower.strip_suffix(end)).unwrap_or(&lower);
        let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
        let (number, shift) = units
            .iter()
            .find_map(|(unit, shift)| Some((short.strip_suffix(*unit)?, *shift)))
            .unwrap_or((short, 0));
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong("say it as 500M, 20G or 1T"));
        }
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        match bytes {
            None => Err(wrong("that is too much")),
            Some(0) => Err(wrong("that is nothing")),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_sizes_are_read() {
        for (text, wanted) in [
            ("20G", 20 << 30),
            ("500M", 500 << 20),
            ("1TiB", 1 << 40),
            ("4096", 4096),
            ("7kb", 7 << 10),
            ("5m", 5 << 20),
            ("10GiB", 10 << 30),
            ("3Gi", 3 << 30),
            (" 12b ", 12),
        ] {
            assert_eq!(text.parse::<Size>().map(Size::bytes), Ok(wanted), "{text}");
        }
        for text in ["", "G", "-1G", "+1G", "1.5G", "99999999999T", "0", "1Gx", "1GG", "much"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
