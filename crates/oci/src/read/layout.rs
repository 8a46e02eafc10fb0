//! OCI image layouts (OCI image specification, "Image Layout").
//!
//! From `index.json` downwards, each document is checked against the descriptor that names it (size, digest, media type)
//! before a word of it is believed. An index may hold indexes, up to a depth and never the same one twice, so that
//! neither cycles nor repeated branches cost anything.

use super::files::{Blob, Files};
use super::{Image, Layer, names};
use crate::media::{self, CONTAINERD_NAME, Kind, REF_NAME};
use crate::spec::{self, Config, Descriptor, List, MAX_CONFIG, MAX_MANIFEST, RawDescriptor, RawDocument};
use crate::{Error, Result};
use sha2::Digest as _;
use std::collections::HashSet;
use vellum_store::BlobFacts;
use vellum_types::{Algorithm, Digest, ImageName, Platform};

/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 8;
/// How many images are looked at in one archive.
const MAX_IMAGES: usize = 10_000;

/// An image that was found in the indexes.
struct Found {
    descriptor: Descriptor,
    names: Vec<String>,
}

struct Walk<'a> {
    files: &'a Files,
    wanted: Platform,
    seen: HashSet<Digest>,
    found: Vec<Found>,
    /// Names with the digest of something else.
    false_names: Vec<String>,
}

pub(super) fn images(files: &Files, platform: Option<&Platform>) -> Result<Vec<Image>> {
    check_version(files)?;
    let bytes = files.read("index.json", MAX_MANIFEST, "index.json")?;
    let bytes =
        bytes.ok_or_else(|| Error::Missing { part: "index.json".into(), path: "index.json".into() })?;
    let index: RawDocument = spec::parse(&bytes, "index.json")?;
    check_document(&index, media::OCI_INDEX, "index.json")?;
    let mut walk = Walk {
        files,
        wanted: platform.cloned().unwrap_or_else(Platform::host),
        seen: HashSet::new(),
        found: Vec::new(),
        false_names: Vec::new(),
    };
    walk.top(descriptors(index.manifests, "index.json")?)?;
    let mut images = Vec::new();
    for found in walk.found {
        images.push(image(files, &found)?);
    }
    if let Some(first) = images.first_mut() {
        first.unusable_names.append(&mut walk.false_names);
    }
    if images.is_empty() {
        return Err(Error::NotAnArchive {
            archive: files.shown().into(),
            reason: "its index.json names no image".into(),
        });
    }
    Ok(images)
}

fn check_version(files: &Files) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let bytes = files.read("oci-layout", MAX_MANIFEST, "oci-layout")?.unwrap_or_default();
    let marker: Marker = spec::parse(&bytes, "oci-layout")?;
    if marker.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    let version = marker.image_layout_version.escape_debug().to_string();
    Err(Error::unsupported("oci-layout", format!("it is of version {version}, and 1 is known")))
}

fn descriptors(raw: Option<List<RawDescriptor>>, part: &str) -> Result<Vec<Descriptor>> {
    let raw = raw.map_or_else(Vec::new, |list| list.0);
    raw.into_iter()
        .enumerate()
        .map(|(at, raw)| Descriptor::check(raw, &format!("entry {at} of {part}")))
        .collect()
}

impl Walk<'_> {
    /// The entries of index.json: images of their own, save those that are one image for several platforms.
    fn top(&mut self, entries: Vec<Descriptor>) -> Result<()> {
        let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
        for entry in entries {
            if entry.is_companion() {
                continue;
            }
            let name = match name_of(&entry) {
                Some(name) if !is_of(&name, &entry.digest) => {
                    self.false_names.push(name);
                    None
                }
                name => name,
            };
            match groups.iter_mut().find(|(n, _)| *n == name) {
                Some((_, group)) => group.push(entry),
                None => groups.push((name, vec![entry])),
            }
        }
        for (name, group) in groups {
            let platforms: HashSet<_> = group.iter().filter_map(|entry| entry.platform.clone()).collect();
            if group.len() > 1 && platforms.len() == group.len() {
                self.choose(group, name.as_deref(), 0, "index.json")?;
            } else {
                for entry in group {
                    self.entry(entry, name.as_deref(), 0, "index.json")?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: Descriptor, name: Option<&str>, depth: usize, inside: &str) -> Result<()> {
        if let Some(found) = self.found.iter_mut().find(|found| found.descriptor.digest == entry.digest) {
            found.names.extend(name.map(str::to_owned));
            return Ok(());
        }
        let part = format!("{} (in {inside})", entry.digest);
        if media::kind(&entry.media_type) == Kind::Manifest {
            if self.found.len() >= MAX_IMAGES {
                return Err(Error::limit(inside, format!("more than {MAX_IMAGES} images")));
            }
            self.found
                .push(Found { descriptor: entry, names: name.map(str::to_owned).into_iter().collect() });
            return Ok(());
        }
        if depth >= MAX_DEPTH {
            return Err(Error::limit(part, format!("indexes more than {MAX_DEPTH} deep")));
        }
        let part = format!("index {part}");
        let bytes = document(self.files, &entry, MAX_MANIFEST, &part)?;
        let index: RawDocument = spec::parse(&bytes, &part)?;
        // An entry without a media type is what it looks like.
        if entry.media_type.is_empty() && index.manifests.is_none() {
            let media_type = index.media_type.unwrap_or_else(|| media::OCI_MANIFEST.into());
            if media::kind(&media_type) != Kind::Manifest {
                return Err(Error::unsupported(part, format!("its media type is {media_type}")));
            }
            return self.entry(Descriptor { media_type, ..entry }, name, depth, inside);
        }
        if !self.seen.insert(entry.digest) {
            return if name.is_some() { self.again(&entry, name, &part) } else { Ok(()) };
        }
        check_document(&index, &entry.media_type, &part)?;
        self.choose(descriptors(index.manifests, &part)?, name, depth + 1, &part)
    }

    /// An index that was walked before has another name now: its choice gets it, too.
    fn again(&mut self, entry: &Descriptor, name: Option<&str>, part: &str) -> Result<()> {
        let bytes = document(self.files, entry, MAX_MANIFEST, part)?;
        let index: RawDocument = spec::parse(&bytes, part)?;
        let inside: HashSet<Digest> =
            descriptors(index.manifests, part)?.into_iter().map(|entry| entry.digest).collect();
        let mut chosen = self.found.iter_mut().filter(|found| inside.contains(&found.descriptor.digest));
        if let (Some(found), Some(name)) = (chosen.next(), name) {
            found.names.push(name.to_owned());
        }
        Ok(())
    }

    /// One of several entries that are the same image for several platforms.
    fn choose(
        &mut self,
        entries: Vec<Descriptor>,
        name: Option<&str>,
        depth: usize,
        inside: &str,
    ) -> Result<()> {
        let mut fitting = Vec::new();
        let mut offered = Vec::new();
        for entry in entries.into_iter().filter(|entry| !entry.is_companion()) {
            let platform = match &entry.platform {
                Some(platform) => Some(platform.clone()),
                None if media::kind(&entry.media_type) == Kind::Manifest => platform_of(self.files, &entry)?,
                None => None,
            };
            match platform {
                Some(platform) if !self.wanted.accepts(&platform) => offered.push(platform.to_string()),
                // An index inside an index may hold what is wanted, and an image that does not say is taken for it.
                platform => fitting.push((platform.is_some(), entry)),
            }
        }
        // The first that says so wins; those that say nothing come after.
        fitting.sort_by_key(|(says, _)| !says);
        let before = self.found.len();
        for (says, entry) in fitting {
            let nested = media::kind(&entry.media_type) == Kind::Index;
            match self.entry(entry, name, depth, inside) {
                Err(Error::NoPlatform { offered: more, .. }) if nested && !says => offered.push(more),
                other => other?,
            }
            if self.found.len() > before || !nested {
                return Ok(());
            }
        }
        Err(Error::no_platform(inside, &self.wanted, offered))
    }
}

/// The platform that a manifest's configuration tells.
fn platform_of(files: &Files, entry: &Descriptor) -> Result<Option<Platform>> {
    Ok(parts(files, entry)?.config.platform)
}

/// Whether a name can be that of what has this digest: it has no digest itself, or this one.
fn is_of(name: &str, digest: &Digest) -> bool {
    name.parse::<ImageName>().ok().is_none_or(|name| name.digest().is_none_or(|own| own == digest))
}

fn name_of(entry: &Descriptor) -> Option<String> {
    let text = |key| entry.annotations.get(key).filter(|text| !text.is_empty()).cloned();
    // `latest` alone is a tag that every tool writes by default, and says nothing about the name.
    text(CONTAINERD_NAME).or_else(|| text(REF_NAME).filter(|name| name != "latest"))
}

/// The bytes of a document, checked against its descriptor.
fn document(files: &Files, descriptor: &Descriptor, limit: u64, part: &str) -> Result<Vec<u8>> {
    if descriptor.size > limit {
        return Err(Error::limit(part, format!("{} bytes, at most {limit}", descriptor.size)));
    }
    blob(files, descriptor, part)?;
    let path = path_of(&descriptor.digest);
    let bytes = files.read(&path, limit, part)?.unwrap_or_default();
    let digest = match descriptor.digest.algorithm() {
        Algorithm::Sha256 => Digest::sha256(&bytes),
        Algorithm::Sha512 => Digest::from_sha512(sha2::Sha512::digest(&bytes).into()),
    };
    if digest != descriptor.digest {
        return Err(Error::damaged(part, format!("its bytes have the digest {digest}")));
    }
    Ok(bytes)
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn blob(files: &Files, descriptor: &Descriptor, part: &str) -> Result<Blob> {
    let path = path_of(&descriptor.digest);
    let Some(blob) = files.find(&path)? else {
        if descriptor.elsewhere {
            return Err(Error::unsupported(part, "it is not in the archive but to be fetched elsewhere"));
        }
        return Err(Error::Missing { part: part.to_owned(), path });
    };
    if blob.size != descriptor.size {
        let reason = format!("it has {} bytes where its descriptor says {}", blob.size, descriptor.size);
        return Err(Error::damaged(part, reason));
    }
    Ok(blob)
}

/// Whether a document is what its descriptor says, and nothing else besides.
fn check_document(document: &RawDocument, expected: &str, part: &str) -> Result<()> {
    if document.fs_layers.is_some() {
        return Err(Error::unsupported(part, "it is a docker manifest of schema 1"));
    }
    let version = document.schema_version.as_ref().and_then(serde_json::Number::as_u64);
    if version != Some(2) {
        return Err(Error::damaged(part, "its schemaVersion is not 2"));
    }
    let kind = media::kind(expected);
    if let Some(told) = document.media_type.as_deref().filter(|told| !told.is_empty()) {
        let same = expected.is_empty() || told == expected || part == "index.json";
        if !same || (kind != Kind::Other && media::kind(told) != kind) {
            let reason = format!("it says it is {told} where its descriptor says {expected}");
            return Err(Error::damaged(part, reason));
        }
    }
    // A document that could be read as both is read as neither.
    let (as_index, as_manifest) =
        (document.manifests.is_some(), document.layers.is_some() || document.config.is_some());
    let (wrong, what) = match kind {
        Kind::Manifest => (as_index, "a manifest that lists manifests"),
        _ => (as_manifest, "an index that lists layers"),
    };
    if wrong { Err(Error::damaged(part, what)) } else { Ok(()) }
}

/// The documents of an image, checked.
struct Parts {
    manifest: Vec<u8>,
    config_bytes: Vec<u8>,
    config: Config,
    layers: Vec<Descriptor>,
}

fn parts(files: &Files, descriptor: &Descriptor) -> Result<Parts> {
    let part = format!("manifest {}", descriptor.digest);
    let manifest = document(files, descriptor, MAX_MANIFEST, &part)?;
    let raw: RawDocument = spec::parse(&manifest, &part)?;
    check_document(&raw, &descriptor.media_type, &part)?;
    let config = raw.config.ok_or_else(|| Error::damaged(&part, "it names no configuration"))?;
    let named = Descriptor::check(config, &format!("the configuration in {part}"))?;
    let config_part = format!("configuration {}", named.digest);
    if media::kind(&named.media_type) != Kind::Config {
        let media_type = named.media_type.escape_debug().to_string();
        return Err(Error::unsupported(
            part,
            format!("it is no image: its configuration is of {media_type}"),
        ));
    }
    let layers = raw.layers.map_or_else(Vec::new, |list| list.0);
    let config_bytes = document(files, &named, MAX_CONFIG, &config_part)?;
    let config = Config::parse(&config_bytes, &config_part)?;
    if config.diff_ids.len() != layers.len() {
        let reason =
            format!("it has {} layers, and its configuration {}", layers.len(), config.diff_ids.len());
        return Err(Error::damaged(part, reason));
    }
    let layers = layers
        .into_iter()
        .enumerate()
        .map(|(at, raw)| Descriptor::check(raw, &format!("layer {at} of {part}")))
        .collect::<Result<Vec<_>>>()?;
    Ok(Parts { manifest, config_bytes, config, layers })
}

fn image(files: &Files, found: &Found) -> Result<Image> {
    let parts = parts(files, &found.descriptor)?;
    let mut layers = Vec::with_capacity(parts.layers.len());
    for (at, descriptor) in parts.layers.iter().enumerate() {
        let part = format!("layer {at} ({}) of manifest {}", descriptor.digest, found.descriptor.digest);
        if media::kind(&descriptor.media_type) != Kind::Layer {
            let media_type = descriptor.media_type.escape_debug().to_string();
            return Err(Error::unsupported(part, format!("its media type is '{media_type}'")));
        }
        let facts = BlobFacts {
            digest: Some(descriptor.digest),
            size: Some(descriptor.size),
            media_type: Some(descriptor.media_type.clone()),
        };
        layers.push(Layer { blob: blob(files, descriptor, &part)?, facts: Some(facts) });
    }
    let (names, unusable_names) = names(found.names.iter().map(String::as_str), true);
    Ok(Image {
        names,
        unusable_names,
        config: parts.config_bytes,
        manifest: Some(parts.manifest),
        layers,
        platform: parts.config.platform,
    })
}
