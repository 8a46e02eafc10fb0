//! Image configurations: the little that the store reads of them, and how new ones are made.

use crate::{Code, CommitOptions, Error, Result};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use vellum_types::{DiffId, Platform};

/// What the store needs of a configuration (OCI image specification, "Image Configuration").
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) diff_ids: Vec<DiffId>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) platform: Option<Platform>,
}

/// The largest configuration that is taken: as containers' registries have it.
pub(crate) const LIMIT: usize = 8 << 20;

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(Code::Archive, "read the image's configuration", reason)
}

/// Reads a configuration.
pub(crate) fn read(bytes: &[u8]) -> Result<Facts> {
    if bytes.len() > LIMIT {
        return Err(wrong("it has more than 8 MiB"));
    }
    if vellum_types::json_marks(bytes) > vellum_types::MAX_JSON_MARKS {
        return Err(wrong("it has more than 100,000 values"));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::caused(Code::Archive, "read the image's configuration", e))?;
    let rootfs = value.get("rootfs").ok_or_else(|| wrong("it has no 'rootfs'"))?;
    if rootfs.get("type").and_then(Value::as_str).is_some_and(|kind| kind != "layers") {
        return Err(wrong("its 'rootfs.type' is not 'layers'"));
    }
    let mut diff_ids = Vec::new();
    for id in rootfs.get("diff_ids").and_then(Value::as_array).into_iter().flatten() {
        let text = id.as_str().ok_or_else(|| wrong("one of its 'rootfs.diff_ids' is not a text"))?;
        diff_ids.push(text.parse().map_err(|e: vellum_types::ParseError| {
            Error::caused(Code::Archive, "read the image's configuration", e)
        })?);
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    Ok(Facts {
        diff_ids,
        created: text("created").and_then(|text| text.parse().ok()),
        platform: text("os").zip(text("architecture")).and_then(|(os, architecture)| {
            let variant = text("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
            format!("{os}/{architecture}{variant}").parse().ok()
        }),
    })
}

/// The configuration of an image that is its parent and one more layer. As docker does it: everything of the parent is kept, but for
/// what names the container it was made in.
pub(crate) fn committed(
    parent: Option<&[u8]>,
    layer: &DiffId,
    now: Timestamp,
    options: &CommitOptions,
) -> Result<Vec<u8>> {
    let mut config: Map<String, Value> = match parent {
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|e| Error::caused(Code::Archive, "read the image's configuration", e))?,
        None => base(),
    };
    for gone in ["container", "container_config", "id", "parent"] {
        config.remove(gone);
    }
    config.insert("created".into(), json!(now.to_string()));
    match &options.author {
        Some(author) => config.insert("author".into(), json!(author)),
        None => config.remove("author"),
    };
    push(config.entry("rootfs").or_insert_with(|| json!({"type": "layers"})), "diff_ids", json!(layer));
    let mut step = Map::new();
    step.insert("created".into(), json!(now.to_string()));
    step.insert("created_by".into(), json!("vellum commit"));
    if let Some(author) = &options.author {
        step.insert("author".into(), json!(author));
    }
    if let Some(message) = &options.message {
        step.insert("comment".into(), json!(message));
    }
    let mut whole = Value::Object(config);
    push(&mut whole, "history", Value::Object(step));
    for change in &options.changes {
        apply(&mut whole["config"], change)?;
    }
    serde_json::to_vec(&whole).map_err(|e| Error::caused(Code::System, "write the image's configuration", e))
}

/// The configuration of an image of one layer and nothing else.
pub(crate) fn imported(layer: &DiffId, now: Timestamp, comment: &str) -> Result<Vec<u8>> {
    let mut config = base();
    config.insert("created".into(), json!(now.to_string()));
    config.insert("config".into(), json!({}));
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": [layer]}));
    config.insert("history".into(), json!([{"created": now.to_string(), "comment": comment}]));
    serde_json::to_vec(&config).map_err(|e| Error::caused(Code::System, "write the image's configuration", e))
}

fn base() -> Map<String, Value> {
    let host = Platform::host();
    let mut config = Map::new();
    config.insert("architecture".into(), json!(host.architecture));
    config.insert("os".into(), json!(host.os));
    if let Some(variant) = host.variant {
        config.insert("variant".into(), json!(variant));
    }
    config
}

/// Appends to the list `key` of an object; what is no list is replaced by one.
fn push(object: &mut Value, key: &str, item: Value) {
    match object.get_mut(key) {
        Some(Value::Array(list)) => list.push(item),
        _ => object[key] = json!([item]),
    }
}

/// One line of a Dockerfile, on the `config` of a configuration.
fn apply(config: &mut Value, change: &str) -> Result<()> {
    let bad = |reason: &str| Error::new(Code::Invalid, format!("apply the change '{change}'"), reason);
    let (word, rest) =
        change.trim().split_once(char::is_whitespace).ok_or_else(|| bad("nothing follows the word"))?;
    let rest = rest.trim();
    if config.is_null() {
        *config = json!({});
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config["Cmd"] = command(rest),
        "ENTRYPOINT" => config["Entrypoint"] = command(rest),
        "USER" => config["User"] = json!(rest),
        "WORKDIR" => config["WorkingDir"] = json!(rest),
        "STOPSIGNAL" => config["StopSignal"] = json!(rest),
        "ENV" => {
            let (name, value) = rest
                .split_once('=')
                .or_else(|| rest.split_once(' '))
                .ok_or_else(|| bad("write it as NAME=VALUE"))?;
            let line = format!("{name}={}", unquoted(value.trim()));
            let prefix = format!("{name}=");
            let list = config.get_mut("Env").and_then(Value::as_array_mut);
            match list.and_then(|l| l.iter_mut().find(|v| v.as_str().is_some_and(|s| s.starts_with(&prefix))))
            {
                Some(old) => *old = json!(line),
                None => push(config, "Env", json!(line)),
            }
        }
        "LABEL" => {
            let (name, value) = rest.split_once('=').ok_or_else(|| bad("write it as NAME=VALUE"))?;
            if !config["Labels"].is_object() {
                config["Labels"] = json!({});
            }
            config["Labels"][unquoted(name)] = json!(unquoted(value));
        }
        "EXPOSE" | "VOLUME" => {
            let key = if word.eq_ignore_ascii_case("EXPOSE") { "ExposedPorts" } else { "Volumes" };
            if !config[key].is_object() {
                config[key] = json!({});
            }
            for item in words(rest) {
                let item =
                    if key == "ExposedPorts" && !item.contains('/') { format!("{item}/tcp") } else { item };
                config[key][item] = json!({});
            }
        }
        _ => {
            return Err(bad(
                "the word is none of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR",
            ));
        }
    }
    Ok(())
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// A JSON list of texts, or a line for the shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => json!(list),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

fn words(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| text.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_a_commit_keeps_the_parents_configuration() {
        let a: DiffId = vellum_types::Digest::sha256(b"a").into();
        let b: DiffId = vellum_types::Digest::sha256(b"b").into();
        let parent = imported(&a, Timestamp::UNIX_EPOCH, "from nothing").unwrap();
        let options = CommitOptions {
            author: Some("me".into()),
            message: Some("why".into()),
            changes: [
                "ENV A=b",
                "ENV A=c",
                "CMD echo hi",
                "ENTRYPOINT [\"/x\"]",
                "LABEL k=\"v w\"",
                "EXPOSE 80 53/udp",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..CommitOptions::default()
        };
        let bytes = committed(Some(&parent), &b, Timestamp::UNIX_EPOCH, &options).unwrap();
        let facts = read(&bytes).unwrap();
        assert_eq!(facts.diff_ids, [a, b]);
        assert_eq!(facts.platform, Some(Platform::host()));
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["config"]["Env"], json!(["A=c"]));
        assert_eq!(value["config"]["Cmd"], json!(["/bin/sh", "-c", "echo hi"]));
        assert_eq!(value["config"]["Entrypoint"], json!(["/x"]));
        assert_eq!(value["config"]["Labels"]["k"], json!("v w"));
        assert_eq!(value["config"]["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(value["history"].as_array().unwrap().len(), 2);
        let bad = CommitOptions { changes: vec!["RUN x".into()], ..CommitOptions::default() };
        assert_eq!(committed(None, &b, Timestamp::UNIX_EPOCH, &bad).unwrap_err().code(), Code::Invalid);
    }

    /// A configuration of 8 MiB: so many times this, and then one long text.
    fn hostile(piece: &str, times: usize) -> Vec<u8> {
        let pieces = vec![piece; times].join(",");
        let start = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[]}},"history":[{pieces}],"x":""#);
        let fill = "x".repeat(LIMIT - start.len() - 2);
        [start.as_str(), &fill, "\"}"].concat().into_bytes()
    }

    /// This process's largest resident set so far, in KiB.
    fn peak() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
    }

    #[test]
    fn plain_hostile_configurations_take_little_memory() {
        const CHILD: &str = "VELLUM_TEST_CONFIGURATION";
        let test = "plain_hostile_configurations_take_little_memory";
        if peak().is_none() {
            vellum_testkit::skip::record(test, "/proc does not tell the largest resident set");
            return;
        }
        // What costs the most for its length, as often as allowed and as often as there is room for.
        let cases = [(r#"{"":0}"#, 33_000), ("[0]", 49_000), (r#"{"":0}"#, 1_100_000), ("0", 4_000_000)];
        if let Ok(number) = std::env::var(CHILD) {
            let (piece, times) = cases[number.parse::<usize>().unwrap()];
            let bytes = hostile(piece, times);
            let before = peak().unwrap();
            let options = CommitOptions::default();
            let layer: DiffId = vellum_types::Digest::sha256(b"a").into();
            let taken = read(&bytes).is_ok();
            assert_eq!(taken, times < 100_000, "{piece}");
            if taken {
                committed(Some(&bytes), &layer, Timestamp::UNIX_EPOCH, &options).unwrap();
            }
            let grown = peak().unwrap() - before;
            assert!(grown < 56 << 10, "{piece}: {grown} KiB more, from {before} KiB");
            return;
        }
        for number in 0..cases.len() {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &format!("imageconfig::tests::{test}"), "--nocapture"])
                .env(CHILD, number.to_string())
                .output()
                .unwrap();
            assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
            assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "the child ran no test");
        }
    }

    #[test]
    fn plain_wrong_configurations_are_refused() {
        for bad in ["", "[]", "{}", r#"{"rootfs":{"type":"x"}}"#, r#"{"rootfs":{"diff_ids":["sha256:1"]}}"#] {
            assert_eq!(read(bad.as_bytes()).unwrap_err().code(), Code::Archive, "{bad}");
        }
    }
}
