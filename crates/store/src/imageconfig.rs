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
    if !rootfs.is_object() {
        return Err(wrong("its 'rootfs' is no object"));
    }
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
    // Somebody else's configuration may have anything here.
    if !config.is_object() {
        *config = json!({});
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config["Cmd"] = command(rest),
        "ENTRYPOINT" => config["Entrypoint"] = command(rest),
        "USER" => config["User"] = json!(rest),
        "WORKDIR" => config["WorkingDir"] = json!(rest),
        "STOPSIGNAL" => config["StopSignal"] = json!(rest),
        "ENV" => {
            for (name, value) in pairs(rest).map_err(bad)? {
                let prefix = format!("{name}=");
                let line = json!(format!("{prefix}{value}"));
                let list = config.get_mut("Env").and_then(Value::as_array_mut);
                let has = |old: &&mut Value| old.as_str().is_some_and(|old| old.starts_with(&prefix));
                match list.and_then(|list| list.iter_mut().find(has)) {
                    Some(old) => *old = line,
                    None => push(config, "Env", line),
                }
            }
        }
        "LABEL" => {
            if !config["Labels"].is_object() {
                config["Labels"] = json!({});
            }
            for (name, value) in pairs(rest).map_err(bad)? {
                config["Labels"][name] = json!(value);
            }
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

/// The pairs of `NAME=VALUE NAME=VALUE…`, or the one of the older form `NAME VALUE`.
fn pairs(text: &str) -> std::result::Result<Vec<(String, String)>, &'static str> {
    const FORM: &str = "write it as NAME=VALUE";
    let items = unquoted(text)?;
    if items.first().is_some_and(|first| !first.contains('=')) {
        let (name, _) = text.split_once(char::is_whitespace).ok_or(FORM)?;
        let value = text[name.len()..].trim();
        let whole = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        return Ok(vec![(name.to_owned(), whole.to_owned())]);
    }
    let pair = |item: String| {
        let (name, value) = item.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(FORM)?;
        Ok((name.to_owned(), value.to_owned()))
    };
    items.into_iter().map(pair).collect()
}

/// The words of a line of a Dockerfile, with quotes and backslashes taken for what they mean.
fn unquoted(text: &str) -> std::result::Result<Vec<String>, &'static str> {
    let (mut all, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if quote.is_none() && c.is_whitespace() {
            all.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        let escapes = |next: &char| quote.is_none() || matches!(next, '"' | '\\' | '$');
        match c {
            '\\' if quote != Some('\'') && rest.peek().is_some_and(escapes) => word.extend(rest.next()),
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            _ => word.push(c),
        }
    }
    all.extend(word);
    if quote.is_none() { Ok(all) } else { Err("a quote in it has no end") }
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
                r#"ENV B="x y" C='"z"' D=\ d\"e"#,
                "ENV F f g",
                "CMD echo hi",
                "ENTRYPOINT [\"/x\"]",
                "LABEL k=\"v w\" l=",
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
        assert_eq!(value["config"]["Env"], json!(["A=c", "B=x y", "C=\"z\"", "D= d\"e", "F=f g"]));
        assert_eq!(value["config"]["Cmd"], json!(["/bin/sh", "-c", "echo hi"]));
        assert_eq!(value["config"]["Entrypoint"], json!(["/x"]));
        assert_eq!(value["config"]["Labels"]["k"], json!("v w"));
        assert_eq!(value["config"]["Labels"]["l"], json!(""));
        assert_eq!(value["config"]["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(value["history"].as_array().unwrap().len(), 2);
        for bad in ["RUN x", "ENV A", "ENV A=b c", "ENV =b", "ENV A=\"b", "LABEL a"] {
            let options = CommitOptions { changes: vec![bad.into()], ..CommitOptions::default() };
            let error = committed(None, &b, Timestamp::UNIX_EPOCH, &options).unwrap_err();
            assert_eq!(error.code(), Code::Invalid, "{bad}");
        }
    }

    #[test]
    fn plain_a_commit_on_anybodys_configuration() {
        let layer: DiffId = vellum_types::Digest::sha256(b"a").into();
        let options = CommitOptions {
            changes: ["CMD x", "ENV A=b", "LABEL a=b", "EXPOSE 80", "VOLUME /v"].map(str::to_owned).to_vec(),
            ..CommitOptions::default()
        };
        for strange in [r#""x""#, "[1]", "5", "true", "null", r#"{"Env":5,"Labels":[],"Volumes":"v"}"#] {
            let parent = format!(r#"{{"rootfs":{{"diff_ids":"x"}},"history":{strange},"config":{strange}}}"#);
            read(parent.as_bytes()).unwrap();
            let bytes = committed(Some(parent.as_bytes()), &layer, Timestamp::UNIX_EPOCH, &options).unwrap();
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(value["config"]["Env"], json!(["A=b"]), "{strange}");
            assert_eq!(value["rootfs"]["diff_ids"], json!([layer]));
        }
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
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"rootfs":[]}"#,
            r#"{"rootfs":{"type":"x"}}"#,
            r#"{"rootfs":{"diff_ids":["sha256:1"]}}"#,
        ] {
            assert_eq!(read(bad.as_bytes()).unwrap_err().code(), Code::Archive, "{bad}");
        }
    }
}
