//! Containers' ids and names.

use crate::{ParseError, serde_as_text};
use std::fmt;
use std::str::FromStr;

/// A container: 64 lower-case hexadecimal digits, from the kernel's random numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId([u8; 32]);

impl ContainerId {
    /// The id made of these (random) bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first twelve digits, as people see it.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContainerId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // A digest has the same form behind its algorithm, and the same checks.
        let digest: crate::Digest = format!("sha256:{text}")
            .parse()
            .map_err(|e: ParseError| ParseError::new("container id", text, e.reason))?;
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_bytes());
        Ok(Self(bytes))
    }
}

serde_as_text!(ContainerId);

/// A name given to a container or a save point: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, as docker has it,
/// at most 255 bytes, and not 64 hexadecimal digits (which is an id).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerName(String);

impl ContainerName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ContainerName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |reason| ParseError::new("name", text, reason);
        if text.is_empty() || text.len() > 255 {
            return Err(error("1 to 255 characters"));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(error("it must begin with a letter or a digit"));
        }
        if !text.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c)) {
            return Err(error("only letters, digits, '_', '.' and '-'"));
        }
        if text.parse::<ContainerId>().is_ok() {
            return Err(error("64 hexadecimal digits are an id"));
        }
        Ok(Self(text.to_owned()))
    }
}

serde_as_text!(ContainerName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "web_1.x-y", "9"] {
            assert_eq!(good.parse::<ContainerName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            ".",
            "..",
            "a/b",
            "a b",
            "é",
            "a\0b",
            "/",
            "_a",
            ".a",
            &"a".repeat(256),
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
        let id = ContainerId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse::<ContainerId>().unwrap(), id);
        assert_eq!(id.short(), "a5a5a5a5a5a5");
    }
}
