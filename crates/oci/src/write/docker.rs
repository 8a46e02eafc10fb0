//! Images as a docker archive, for every docker there was.
//!
//! ```text
//! DIFF.tar                 a layer, plain
//! IMAGE.json               a configuration
//! manifest.json            names, configurations and layers             (docker from 1.10 on)
//! ID/{VERSION,json}        a layer's place in its chain
//! ID/layer.tar -> ../DIFF.tar
//! repositories             names and topmost layers                     (docker before 1.10)
//! ```

use super::place::Place;
use super::{Loaded, Source, distinct};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use vellum_types::Digest;

pub(super) fn write(source: &Source<'_>, images: &[Loaded], place: &mut dyn Place) -> Result<()> {
    for (index, layer) in distinct(images).into_iter().enumerate() {
        let path = format!("{}.tar", layer.diff_id.digest().hex());
        place.file(&path, layer.tar_size, &mut |out| source.tar(index, layer, out))?;
    }
    let mut manifest = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for image in images {
        let config = format!("{}.json", image.id.digest().hex());
        place.document(&config, &image.config)?;
        let layers = image.layers.iter().map(|layer| format!("{}.tar", layer.diff_id.digest().hex()));
        let tagged = || image.names.iter().filter(|name| name.tag().is_some());
        let tags: Vec<String> = tagged().map(|name| name.familiar()).collect();
        manifest.push(json!({
            "Config": config,
            "RepoTags": tags,
            "Layers": layers.collect::<Vec<_>>(),
        }));
        let top = write_chain(image, place)?;
        for (name, top) in tagged().filter_map(|name| Some((name, top.clone()?))) {
            let tags = repositories.entry(name.familiar_repository()).or_default();
            tags.insert(name.tag().unwrap_or_default().to_owned(), top);
        }
    }
    place.document("manifest.json", &bytes(&Value::from(manifest))?)?;
    if !repositories.is_empty() {
        place.document("repositories", &bytes(&json!(repositories))?)?;
    }
    Ok(())
}

/// The layers in the form of before 1.10. Returns the topmost one's id.
fn write_chain(image: &Loaded, place: &mut dyn Place) -> Result<Option<String>> {
    let mut parent: Option<String> = None;
    for (at, layer) in image.layers.iter().enumerate() {
        let top = at + 1 == image.layers.len();
        // The topmost carries the image's configuration, so that its id depends on it.
        let told = if top { format!("{} {}", layer.chain_id, image.id) } else { layer.chain_id.to_string() };
        let id = Digest::sha256(told.as_bytes()).hex();
        let mut json = if top { top_json(image)? } else { Map::new() };
        json.insert("id".into(), id.clone().into());
        json.entry("created").or_insert_with(|| "1970-01-01T00:00:00Z".into());
        if let Some(parent) = &parent {
            json.insert("parent".into(), parent.clone().into());
        }
        place.document(&format!("{id}/VERSION"), b"1.0")?;
        place.document(&format!("{id}/json"), &bytes(&Value::Object(json))?)?;
        place.symlink(&format!("{id}/layer.tar"), &format!("../{}.tar", layer.diff_id.digest().hex()))?;
        parent = Some(id);
    }
    Ok(parent)
}

/// The configuration without what older dockers keep elsewhere.
fn top_json(image: &Loaded) -> Result<Map<String, Value>> {
    let mut json: Map<String, Value> = crate::spec::parse_tree(&image.config, "configuration")?;
    json.remove("rootfs");
    json.remove("history");
    Ok(json)
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Json { part: "a document to write".into(), source })
}
