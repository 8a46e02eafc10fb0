//! Docker archives: `manifest.json` names each image's configuration, names and layers by their paths.

use super::files::Files;
use super::{Image, Layer, names};
use crate::spec::{self, Config, List, MAX_CONFIG, MAX_MANIFEST};
use crate::{Error, Result};
use serde::Deserialize;
use vellum_types::ImageId;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    #[serde(default)]
    config: Option<String>,
    #[serde(default)]
    repo_tags: Option<List<String>>,
    #[serde(default)]
    layers: Option<List<String>>,
}

pub(super) fn images(files: &Files) -> Result<Vec<Image>> {
    let bytes = files.read("manifest.json", MAX_MANIFEST, "manifest.json")?.unwrap_or_default();
    let items = spec::parse::<List<Item>>(&bytes, "manifest.json")?.0;
    if items.is_empty() {
        return Err(Error::NotAnArchive {
            archive: files.shown().into(),
            reason: "its manifest.json names no image".into(),
        });
    }
    items.into_iter().enumerate().map(|(at, item)| image(files, at, item)).collect()
}

fn image(files: &Files, at: usize, item: Item) -> Result<Image> {
    let part = format!("entry {at} of manifest.json");
    let path = item.config.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| Error::damaged(&part, "it names no configuration"))?;
    let config_part = format!("configuration {} of {part}", shown(&path));
    inside(&path, &config_part)?;
    let config = files.read(&path, MAX_CONFIG, &config_part)?;
    let config = config.ok_or_else(|| Error::Missing { part: config_part.clone(), path: shown(&path) })?;
    if let Some(digest) = promised_digest(&path)
        && ImageId::of(&config).digest().hex() != digest
    {
        let reason = format!("its bytes have the digest {}", ImageId::of(&config));
        return Err(Error::damaged(config_part, reason));
    }
    let parsed = Config::parse(&config, &config_part)?;
    let paths = item.layers.unwrap_or_default().0;
    if paths.len() != parsed.diff_ids.len() {
        let reason =
            format!("it has {} layers, and its configuration {}", paths.len(), parsed.diff_ids.len());
        return Err(Error::damaged(part, reason));
    }
    let mut layers = Vec::with_capacity(paths.len());
    for (number, path) in paths.iter().enumerate() {
        let part = format!("layer {number} ({}) of {part}", shown(path));
        inside(path, &part)?;
        let blob = files.find(path)?.ok_or_else(|| Error::Missing { part, path: shown(path) })?;
        layers.push(Layer { blob, facts: None });
    }
    let tags = item.repo_tags.unwrap_or_default().0;
    let (names, unusable_names) = names(tags.iter().map(String::as_str), false);
    Ok(Image { names, unusable_names, config, manifest: None, layers, platform: parsed.platform })
}

/// A path in a document that leads out of the archive is not only absent but wrong.
fn inside(path: &str, part: &str) -> Result<()> {
    if path.starts_with('/') || path.split('/').any(|name| name == "..") || path.contains('\0') {
        return Err(Error::damaged(part, "its path leads out of the archive"));
    }
    Ok(())
}

/// The digest that a configuration's path tells: `HEX.json`, or `blobs/sha256/HEX`.
fn promised_digest(path: &str) -> Option<&str> {
    let name = path.strip_suffix(".json").or_else(|| path.strip_prefix("blobs/sha256/"))?;
    (name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()))
        .then_some(name)
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect::<String>().escape_debug().to_string()
}
