//! The documents of an image, as read and as written.
//!
//! What is read comes from outside: fields that may be wrong are taken as loosely as JSON allows and checked one by
//! one, so that an error says which descriptor is wrong and not only at which column.

use crate::media::{self, Kind};
use crate::{Error, Result};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vellum_types::{DiffId, Digest, MAX_JSON_MARKS, Platform, json_marks};

/// The largest index or manifest that is read: what registries accept.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// The largest configuration that is read.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// The most entries of any list: far beyond the layers that a driver can stack, and little enough that a document of empty
/// entries does not take hundreds of times its size in memory.
const MAX_LIST: usize = 10_000;

/// A list of a document, at most [`MAX_LIST`] long.
#[derive(Debug, Clone, Default)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of at most {MAX_LIST} entries")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut entries: A,
            ) -> std::result::Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if list.len() == MAX_LIST {
                        return Err(serde::de::Error::invalid_length(MAX_LIST + 1, &self));
                    }
                    list.push(entry);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(Visitor(std::marker::PhantomData))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawDescriptor {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    size: Option<serde_json::Number>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    urls: Option<List<IgnoredAny>>,
}

#[derive(Debug, Clone, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// A descriptor whose digest and size are well formed.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) platform: Option<Platform>,
    pub(crate) artifact: bool,
    /// The blob may lie elsewhere and not in the archive.
    pub(crate) elsewhere: bool,
}

impl Descriptor {
    pub(crate) fn check(raw: RawDescriptor, part: &str) -> Result<Self> {
        let digest = raw.digest.ok_or_else(|| Error::damaged(part, "its descriptor has no digest"))?;
        let digest: Digest = digest.parse().map_err(|e| Error::damaged(part, format!("{e}")))?;
        let part = format!("{part} ({digest})");
        let size = raw.size.ok_or_else(|| Error::damaged(&part, "its descriptor has no size"))?;
        let size =
            size.as_u64().ok_or_else(|| Error::damaged(&part, format!("{size} is not a size in bytes")))?;
        let platform = raw.platform.map(|p| Platform {
            os: p.os,
            architecture: p.architecture,
            variant: p.variant.filter(|v| !v.is_empty()),
        });
        Ok(Self {
            media_type: raw.media_type.unwrap_or_default(),
            digest,
            size,
            annotations: raw.annotations.unwrap_or_default(),
            platform,
            artifact: raw.artifact_type.is_some_and(|t| !t.is_empty()),
            elsewhere: raw.urls.is_some_and(|urls| !urls.0.is_empty()),
        })
    }

    /// Signatures, attestations and other companions of images, which are left alone.
    pub(crate) fn is_companion(&self) -> bool {
        let unknown = |p: &Platform| p.os == "unknown" || p.architecture == "unknown";
        self.artifact
            || self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(unknown)
            || (!self.media_type.is_empty() && media::kind(&self.media_type) == Kind::Other)
    }
}

/// An index or a manifest, before it is known which.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawDocument {
    #[serde(default)]
    pub(crate) schema_version: Option<serde_json::Number>,
    #[serde(default)]
    pub(crate) media_type: Option<String>,
    #[serde(default)]
    pub(crate) manifests: Option<List<RawDescriptor>>,
    #[serde(default)]
    pub(crate) config: Option<RawDescriptor>,
    #[serde(default)]
    pub(crate) layers: Option<List<RawDescriptor>>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) fs_layers: Option<IgnoredAny>,
}

/// What is needed of a configuration.
#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Debug, Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<List<String>>,
}

/// What is needed of a configuration, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) platform: Option<Platform>,
    pub(crate) diff_ids: Vec<DiffId>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8], part: &str) -> Result<Self> {
        let raw: RawConfig = parse(bytes, part)?;
        let rootfs = raw.rootfs.ok_or_else(|| Error::damaged(part, "it has no rootfs"))?;
        let texts = rootfs.diff_ids.unwrap_or_default().0;
        let mut diff_ids = Vec::with_capacity(texts.len());
        for (at, text) in texts.iter().enumerate() {
            let id = text.parse().map_err(|e| Error::damaged(part, format!("rootfs.diff_ids[{at}]: {e}")))?;
            diff_ids.push(id);
        }
        let platform = match (raw.os, raw.architecture) {
            (Some(os), Some(architecture)) if !os.is_empty() && !architecture.is_empty() => {
                Some(Platform { os, architecture, variant: raw.variant.filter(|v| !v.is_empty()) })
            }
            _ => None,
        };
        Ok(Self { platform, diff_ids })
    }
}

/// Parses JSON. Its nesting is bounded by the parser, its size by who read it.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], part: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { part: part.to_owned(), source })
}

/// As [`parse`], of a document that is made a tree of values: of those there may be so many only.
pub(crate) fn parse_tree<T: serde::de::DeserializeOwned>(bytes: &[u8], part: &str) -> Result<T> {
    if json_marks(bytes) > MAX_JSON_MARKS {
        return Err(Error::limit(part, format!("more than {MAX_JSON_MARKS} values in its JSON")));
    }
    parse(bytes, part)
}

/// A descriptor to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Written {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A manifest to be written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WrittenManifest {
    pub(crate) schema_version: u32,
    pub(crate) media_type: &'static str,
    pub(crate) config: Written,
    pub(crate) layers: Vec<Written>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}
