//! The ids of layers on disk.

use crate::{ParseError, serde_as_text};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// A layer of this store on its disk: an image's layer, a container's, a save point.
///
/// A positive number, written in base 36 with lower-case digits, so that names are short: the
/// mount call takes one page of options, and 499 lower layers of up to five digits fit (the first
/// 60 million ids; of six digits about 480). Ids are handed out in ascending order and never used
/// twice in a store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(NonZeroU32);

impl LayerId {
    /// The largest id: six digits.
    pub const MAX: u32 = 36u32.pow(6) - 1;

    /// The id with this number; `None` for 0 and for what has more than six digits.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).filter(|n| n.get() <= Self::MAX).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0u8; 7];
        let mut at = digits.len();
        let mut rest = self.0.get();
        while rest > 0 {
            at -= 1;
            digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
        }
        f.pad(std::str::from_utf8(&digits[at..]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LayerId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |reason| ParseError::new("layer id", text, reason);
        if text.is_empty() || text.len() > 6 || text.starts_with('0') {
            return Err(error("one to six digits, the first not 0"));
        }
        if !text.bytes().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()) {
            return Err(error("only digits and lower-case letters"));
        }
        let number = u32::from_str_radix(text, 36).map_err(|_| error("too large"))?;
        Self::new(number).ok_or_else(|| error("out of range"))
    }
}

serde_as_text!(LayerId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for number in [1, 35, 36, 36 * 36, 60_466_175, LayerId::MAX] {
            let id = LayerId::new(number).unwrap();
            assert_eq!(id.to_string().parse::<LayerId>().unwrap(), id);
        }
        assert_eq!(LayerId::new(60_466_175).unwrap().to_string(), "zzzzz");
        for bad in ["", "0", "01", "A", "aaaaaaa", "-1", "+1", "a/b", ".."] {
            assert!(bad.parse::<LayerId>().is_err(), "{bad}");
        }
        assert!(LayerId::new(0).is_none());
        assert!(LayerId::new(u32::MAX).is_none());
    }
}
