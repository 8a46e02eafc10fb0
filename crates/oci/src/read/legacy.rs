//! Docker archives of before version 1.10: a folder for each layer, named by its id, with `json` (its configuration and
//! its parent's id) and `layer.tar`; `repositories` names the topmost layers of images.
//!
//! Such an image has no configuration of today's form. One is made as docker makes it when it loads such an archive: the
//! topmost layer's, without the fields of the chain, with `rootfs` (which takes reading each layer once, for its
//! diff ID) and `history`.

use super::files::Files;
use super::{Image, Layer, names};
use crate::spec::{self, Config, MAX_CONFIG, MAX_MANIFEST};
use crate::{Error, Result};
use serde_json::{Map, Value};
use sha2::Digest as _;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use vellum_archive::compression::Decoder;
use vellum_types::{DiffId, Digest};

/// More layers than any image of that time could have.
const MAX_CHAIN: usize = 1000;

type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// Whether there is a folder with a layer of this form.
pub(super) fn looks_so(files: &Files) -> Result<bool> {
    for id in ids(files)? {
        if files.find(&format!("{id}/json"))?.is_some() && files.find(&format!("{id}/layer.tar"))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn ids(files: &Files) -> Result<Vec<String>> {
    let mut names = files.top()?;
    names.retain(|name| is_id(name));
    Ok(names)
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

pub(super) fn images(files: &Files) -> Result<Vec<Image>> {
    let mut tops: Vec<(String, Vec<String>)> = Vec::new();
    if let Some(bytes) = files.read("repositories", MAX_MANIFEST, "repositories")? {
        let repositories: Repositories = spec::parse(&bytes, "repositories")?;
        for (repository, tags) in repositories {
            for (tag, id) in tags {
                let name = format!("{repository}:{tag}");
                match tops.iter_mut().find(|(top, _)| *top == id) {
                    Some((_, names)) => names.push(name),
                    None => tops.push((id, vec![name])),
                }
            }
        }
    }
    if tops.is_empty() {
        tops = heads(files)?.into_iter().map(|id| (id, Vec::new())).collect();
    }
    let mut diff_ids = HashMap::new();
    tops.iter().map(|(id, names)| image(files, id, names, &mut diff_ids)).collect()
}

/// Layers that are no other's parent.
fn heads(files: &Files) -> Result<Vec<String>> {
    let ids = ids(files)?;
    let mut parents = HashSet::new();
    for id in &ids {
        parents.extend(layer_json(files, id)?.1);
    }
    Ok(ids.into_iter().filter(|id| !parents.contains(id)).collect())
}

/// A layer's `json` and its parent.
fn layer_json(files: &Files, id: &str) -> Result<(Map<String, Value>, Option<String>)> {
    let part = format!("layer {}", id.escape_debug());
    if !is_id(id) {
        return Err(Error::damaged(part, "a layer's id is 64 hexadecimal digits"));
    }
    let path = format!("{id}/json");
    let bytes = files.read(&path, MAX_CONFIG, &part)?;
    let bytes = bytes.ok_or_else(|| Error::Missing { part: part.clone(), path })?;
    let json: Map<String, Value> = spec::parse_tree(&bytes, &part)?;
    let parent = json.get("parent").and_then(Value::as_str).filter(|p| !p.is_empty()).map(str::to_owned);
    Ok((json, parent))
}

fn image(files: &Files, top: &str, tags: &[String], diff_ids: &mut HashMap<String, DiffId>) -> Result<Image> {
    // Of the layers below only what the history tells is kept: a thousand of them may have 8 MiB each.
    let (mut chain, mut config, mut told) = (Vec::new(), None, 0);
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        if chain.iter().any(|(seen, _)| *seen == id) {
            return Err(Error::damaged(format!("layer {id}"), "it is its own ancestor"));
        }
        if chain.len() >= MAX_CHAIN {
            return Err(Error::limit(format!("layer {top}"), format!("more than {MAX_CHAIN} ancestors")));
        }
        let (json, parent) = layer_json(files, &id)?;
        let step = history_of(&json);
        told += step.values().filter_map(Value::as_str).map(str::len).sum::<usize>();
        if told as u64 > MAX_CONFIG {
            return Err(Error::limit(format!("layer {top}"), "a history of more than 8 MiB"));
        }
        chain.push((id, Value::Object(step)));
        config.get_or_insert(json);
        next = parent;
    }
    chain.reverse();
    let (mut layers, mut diffs, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (id, step) in chain {
        let (part, path) = (format!("layer {id}"), format!("{id}/layer.tar"));
        let blob = files.find(&path)?.ok_or_else(|| Error::Missing { part: part.clone(), path })?;
        let diff = match diff_ids.get(&id) {
            Some(diff) => *diff,
            None => {
                let diff = blob.open().and_then(diff_id).map_err(Error::io(format!("read {part}")))?;
                diff_ids.insert(id, diff);
                diff
            }
        };
        diffs.push(Value::from(diff.to_string()));
        history.push(step);
        layers.push(Layer { blob, facts: None });
    }
    let mut config = config.unwrap_or_default();
    for field in ["id", "parent", "parent_id", "layer_id", "Size", "throwaway"] {
        config.remove(field);
    }
    config.insert("rootfs".into(), serde_json::json!({ "type": "layers", "diff_ids": diffs }));
    config.insert("history".into(), Value::Array(history));
    let part = format!("layer {top}");
    let config = serde_json::to_vec(&config).map_err(|source| Error::Json { part: part.clone(), source })?;
    let platform = Config::parse(&config, &part)?.platform;
    let (names, unusable_names) = names(tags.iter().map(String::as_str), false);
    Ok(Image { names, unusable_names, config, manifest: None, layers, platform })
}

fn history_of(json: &Map<String, Value>) -> Map<String, Value> {
    let mut entry = Map::new();
    for (from, to) in [("created", "created"), ("author", "author"), ("comment", "comment")] {
        if let Some(Value::String(text)) = json.get(from).filter(|value| *value != "") {
            entry.insert(to.into(), text.clone().into());
        }
    }
    let command = json.get("container_config").and_then(|config| config.get("Cmd")).and_then(Value::as_array);
    if let Some(words) = command {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        entry.insert("created_by".into(), words.join(" ").into());
    }
    entry
}

/// The digest of the plain tar.
fn diff_id(input: Box<dyn Read + Send>) -> io::Result<DiffId> {
    let mut input = Decoder::new(input)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_sha256(hasher.finalize().into()).into()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
