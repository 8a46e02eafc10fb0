//! The words of Vellum as types: digests, layer ids, names of images.
//!
//! Everything here has a checked constructor ([`std::str::FromStr`], `new`), and
//! deserialisation goes through it, so that a value that exists is a valid value. Nothing here
//! touches a file.
//!
//! | type | what it names | form |
//! |---|---|---|
//! | [`Digest`] | bytes, by content | `sha256:` and 64 hex digits (or `sha512:` and 128) |
//! | [`DiffId`] | a layer's uncompressed tar | a digest |
//! | [`ChainId`] | a layer together with all layers below it | a digest of digests |
//! | [`ImageId`] | an image, by its configuration's bytes | a digest |
//! | [`LayerId`] | one layer on this store's disk, image's or container's | up to six base-36 digits |
//! | [`ContainerId`] | a container | 64 hex digits, shown as 12 |
//! | [`ImageName`] | what people call an image | `registry/path:tag` |
//! | [`Platform`] | what machine an image is for | `os/architecture[/variant]` |
//! | [`Size`] | how much something may take | `500M`, `20G` |

mod container;
mod digest;
mod json;
mod layer;
mod name;
mod platform;
mod size;

pub use container::{ContainerId, ContainerName};
pub use digest::{Algorithm, ChainId, DiffId, Digest, ImageId};
pub use json::{MAX_JSON_MARKS, json_marks, optional_path_as_text, path_as_text};
pub use layer::LayerId;
pub use name::ImageName;
pub use platform::Platform;
pub use size::Size;

/// Text that is not a valid value of one of this crate's types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a valid {kind}: {reason}")]
pub struct ParseError {
    /// What the text should have been, such as `digest`.
    pub kind: &'static str,
    /// The text, shortened to 100 characters and with control characters escaped.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ParseError {
    pub(crate) fn new(kind: &'static str, text: &str, reason: &'static str) -> Self {
        let text = text.chars().take(100).collect::<String>().escape_debug().to_string();
        Self { kind, text, reason }
    }
}

/// Serialises through `Display` and deserialises through `FromStr`.
macro_rules! serde_as_text {
    ($($name:ty),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_text;
