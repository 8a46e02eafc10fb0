//! Images as an OCI layout.

use super::place::{Place, copy, head};
use super::{Loaded, Source, distinct, label};
use crate::media::{self, CONTAINERD_NAME, Kind, REF_NAME};
use crate::spec::{self, Descriptor, RawDocument, Written, WrittenManifest};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use vellum_archive::compression::{Compression, Encoder, detect};
use vellum_store::{BlobFacts, LayerOutcome, LayerRow};
use vellum_types::{DiffId, Digest, ImageName};

/// What the file `oci-layout` holds.
pub(super) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

pub(super) fn write(
    source: &Source<'_>,
    images: &[Loaded],
    compression: Option<Compression>,
    place: &mut dyn Place,
) -> Result<()> {
    let mut layers = HashMap::new();
    for (index, layer) in distinct(images).into_iter().enumerate() {
        layers.insert(layer.diff_id, write_layer(source, index, layer, compression, place)?);
    }
    let mut entries = Vec::new();
    for image in images {
        let written = write_image(image, &layers, place)?;
        if image.names.is_empty() {
            entries.push(written);
            continue;
        }
        for name in &image.names {
            entries.push(Written { annotations: annotations(name, images), ..written.clone() });
        }
    }
    let index = index(place.read("index.json")?, entries)?;
    place.document("index.json", &index)?;
    place.document("oci-layout", MARKER)
}

fn write_layer(
    source: &Source<'_>,
    index: usize,
    layer: &LayerRow,
    compression: Option<Compression>,
    place: &mut dyn Place,
) -> Result<Written> {
    if let Some((digest, size, has, file)) = kept(source, layer, compression)? {
        source.progress.layer_started(index, &label(&layer.diff_id), Some(size));
        place.known_blob(&digest, size, &mut |out| copy(&file, size, Some(&digest), out))?;
        source.progress.bytes(index, size);
        source.progress.layer_done(index, LayerOutcome::Shared);
        return Ok(descriptor(&media_type(has), digest, size));
    }
    let compression = compression.unwrap_or(Compression::Gzip);
    let failed = || Error::io(format!("write the layer {}", layer.diff_id));
    let (digest, size) = place.blob(&mut |out: &mut dyn Write| {
        let mut encoder = Encoder::new(compression, out).map_err(failed())?;
        source.tar(index, layer, &mut encoder)?;
        encoder.finish().map(|_| ()).map_err(failed())
    })?;
    Ok(descriptor(&media_type(compression), digest, size))
}

/// The blob that the layer came in, if it was kept and is compressed as asked.
fn kept(
    source: &Source<'_>,
    layer: &LayerRow,
    wanted: Option<Compression>,
) -> Result<Option<(Digest, u64, Compression, File)>> {
    let Some((BlobFacts { digest: Some(digest), .. }, file)) = source.store.layer_blob(layer.id)? else {
        return Ok(None);
    };
    let failed = || Error::io(format!("read the kept blob {digest}"));
    let size = file.metadata().map_err(failed())?.len();
    let has = detect(&head(&file).map_err(failed())?);
    Ok(wanted.is_none_or(|wanted| wanted == has).then_some((digest, size, has, file)))
}

pub(super) fn media_type(compression: Compression) -> String {
    format!("{}{}", media::OCI_LAYER, compression.media_type_suffix())
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Written {
    Written { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new() }
}

/// The configuration and the manifest of an image.
fn write_image(image: &Loaded, layers: &HashMap<DiffId, Written>, place: &mut dyn Place) -> Result<Written> {
    let layers: Vec<Written> =
        image.layers.iter().filter_map(|layer| layers.get(&layer.diff_id)).cloned().collect();
    let config = descriptor(media::OCI_CONFIG, *image.id.digest(), image.config.len() as u64);
    document(place, &image.config)?;
    let recorded: Option<RawDocument> =
        image.manifest.as_deref().and_then(|bytes| spec::parse(bytes, "manifest").ok());
    let (bytes, media_type) = match (recorded, &image.manifest) {
        (Some(recorded), Some(bytes)) if describes(&recorded, &config, &layers) => {
            (bytes.clone(), recorded.media_type.unwrap_or_else(|| media::OCI_MANIFEST.to_owned()))
        }
        (recorded, _) => {
            let manifest = WrittenManifest {
                schema_version: 2,
                media_type: media::OCI_MANIFEST,
                config,
                layers,
                annotations: recorded.and_then(|r| r.annotations).unwrap_or_default(),
            };
            (json(&manifest)?, media::OCI_MANIFEST.to_owned())
        }
    };
    let digest = document(place, &bytes)?;
    Ok(descriptor(&media_type, digest, bytes.len() as u64))
}

pub(super) fn document(place: &mut dyn Place, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::sha256(bytes);
    let failed = || Error::io(format!("write the blob {digest}"));
    place.known_blob(&digest, bytes.len() as u64, &mut |out| out.write_all(bytes).map_err(failed()))?;
    Ok(digest)
}

/// Whether a recorded manifest names exactly these blobs.
fn describes(recorded: &RawDocument, config: &Written, layers: &[Written]) -> bool {
    let same = |raw: &spec::RawDescriptor, written: &Written, kind: Kind| {
        Descriptor::check(raw.clone(), "").is_ok_and(|d| {
            d.digest == written.digest && d.size == written.size && media::kind(&d.media_type) == kind
        })
    };
    let recorded_layers = recorded.layers.as_ref().map_or(&[][..], |list| &list.0);
    recorded.config.as_ref().is_some_and(|raw| same(raw, config, Kind::Config))
        && recorded_layers.len() == layers.len()
        && recorded_layers.iter().zip(layers).all(|(raw, written)| same(raw, written, Kind::Layer))
}

/// The names by which tools know an image: containerd's holds the whole name, the specification's the tag, as docker
/// writes it, where the tag alone tells the archive's images apart.
fn annotations(name: &ImageName, images: &[Loaded]) -> BTreeMap<String, String> {
    let same_tag = |other: &&ImageName| other.tag() == name.tag();
    annotation(name, images.iter().flat_map(|image| &image.names).filter(same_tag).count() == 1)
}

pub(super) fn annotation(name: &ImageName, alone: bool) -> BTreeMap<String, String> {
    let reference = match name.tag() {
        Some(tag) if alone => tag.to_owned(),
        _ => name.to_string(),
    };
    BTreeMap::from([(CONTAINERD_NAME.to_owned(), name.to_string()), (REF_NAME.to_owned(), reference)])
}

/// The index of these entries, and of those of an index before that are other images. A tag alone may be another image's already: then
/// the specification's name is the whole name, too.
pub(super) fn index(before: Option<Vec<u8>>, mut entries: Vec<Written>) -> Result<Vec<u8>> {
    use serde_json::Value;
    let before: Value = match before {
        Some(bytes) => spec::parse_tree(&bytes, "index.json")?,
        None => Value::Null,
    };
    let old = before.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    let new: Vec<Value> = entries.iter().map(value).collect::<Result<_>>()?;
    let replaced = |entry: &Value| {
        let name = name_in(entry);
        new.iter().any(|by| by == entry || name.is_some() && name == name_in(by))
    };
    let mut manifests: Vec<Value> = old.into_iter().filter(|entry| !replaced(entry)).collect();
    for entry in &mut entries {
        let taken = |reference: &String| {
            manifests.iter().any(|other| text_in(other, REF_NAME) == Some(reference.as_str()))
        };
        if entry.annotations.get(REF_NAME).is_some_and(taken)
            && let Some(whole) = entry.annotations.get(CONTAINERD_NAME).cloned()
        {
            entry.annotations.insert(REF_NAME.to_owned(), whole);
        }
    }
    manifests.extend(entries.iter().map(value).collect::<Result<Vec<_>>>()?);
    json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_INDEX,
        "manifests": manifests,
    }))
}

fn text_in<'a>(entry: &'a serde_json::Value, annotation: &str) -> Option<&'a str> {
    entry.get("annotations")?.get(annotation)?.as_str()
}

/// The image that an entry of an index says it is, as readers of layouts understand it: a bare tag says nothing.
fn name_in(entry: &serde_json::Value) -> Option<ImageName> {
    let text = text_in(entry, CONTAINERD_NAME).or_else(|| text_in(entry, REF_NAME))?;
    text.parse().ok().filter(|_| text.contains([':', '@', '/']))
}

fn value(entry: &Written) -> Result<serde_json::Value> {
    serde_json::to_value(entry).map_err(|source| Error::Json { part: "index.json".into(), source })
}

pub(super) fn json(document: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|source| Error::Json { part: "a document to write".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_an_index_keeps_what_is_another_image() {
        let entry = |name: &str, alone, size| Written {
            annotations: annotation(&name.parse().unwrap(), alone),
            ..descriptor("m", Digest::sha256(name.as_bytes()), size)
        };
        let first = index(None, vec![entry("a:latest", true, 1)]).unwrap();
        let both = index(Some(first), vec![entry("b:latest", true, 2)]).unwrap();
        // As other tools write it: a tag, a whole name, and nothing but the image.
        let mut both: serde_json::Value = serde_json::from_slice(&both).unwrap();
        let foreign = |reference: &str| serde_json::json!({"size": 9, "annotations": {REF_NAME: reference}});
        let more = [foreign("3"), foreign("docker.io/library/c:3"), serde_json::json!({"size": 9})];
        both["manifests"].as_array_mut().unwrap().extend(more);
        let again = vec![entry("a:latest", true, 3), entry("c:3", true, 4)];
        let all = index(Some(serde_json::to_vec(&both).unwrap()), again).unwrap();
        let all: serde_json::Value = serde_json::from_slice(&all).unwrap();
        let found: Vec<_> = all["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (entry["size"].as_u64().unwrap(), text_in(entry, REF_NAME).unwrap_or_default()))
            .collect();
        let expected = [
            (2, "docker.io/library/b:latest"),
            (9, "3"),
            (9, ""),
            (3, "latest"),
            (4, "docker.io/library/c:3"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_index_before_of_too_many_values_is_refused() {
        let small = index(Some(br#"{"manifests":[{"a":1}]}"#.to_vec()), Vec::new()).unwrap();
        assert!(String::from_utf8(small).unwrap().contains(r#"{"a":1}"#));
        let many = format!(r#"{{"manifests":[{}0]}}"#, "0,".repeat(vellum_types::MAX_JSON_MARKS));
        let error = index(Some(many.into_bytes()), Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
    }
}
