//! The protocol's JSON.

use super::Body;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What docker's daemon sends and takes.
const JSON: &str = "application/vnd.docker.plugins.v1.2+json";

/// No id is longer; docker's have 64 characters, and 69 with `-init`.
const LONGEST_ID: usize = 255;

/// A call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Activate,
    Init { home: String, options: Vec<String>, mapped: bool },
    Capabilities,
    Create { id: String, parent: Option<String>, options: Vec<(String, String)> },
    Remove { id: String },
    Get { id: String, label: Option<String> },
    Put { id: String },
    Exists { id: String },
    Status,
    Metadata { id: String },
    Cleanup,
    Diff { id: String, parent: Option<String> },
    Changes { id: String, parent: Option<String> },
    DiffSize { id: String, parent: Option<String> },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Layer {
    #[serde(rename = "ID")]
    id: Option<String>,
    parent: Option<String>,
    mount_label: Option<String>,
    storage_opt: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Init {
    home: Option<String>,
    opts: Option<Vec<String>>,
    #[serde(rename = "UIDMaps")]
    uid_maps: Option<Vec<IdMap>>,
    #[serde(rename = "GIDMaps")]
    gid_maps: Option<Vec<IdMap>>,
}

#[derive(Debug, Deserialize)]
struct IdMap {
    container_id: i64,
    host_id: i64,
}

/// An answer; what is empty is left out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Reply {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) implements: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) err: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exists: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Vec<(String, String)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changes: Option<Vec<Changed>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capabilities: Option<Promises>,
}

/// One difference.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Changed {
    pub(super) path: String,
    /// 0 modified, 1 added, 2 deleted.
    pub(super) kind: u8,
}

/// What the plugin promises.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Promises {
    pub(super) reproduces_exact_diffs: bool,
}

impl Message {
    /// Reads the call `name`; `None` if the protocol has none of this name.
    pub(super) fn parse(name: &str, body: &[u8]) -> Option<Result<Self, String>> {
        let name = match name {
            "Plugin.Activate" => return Some(Ok(Self::Activate)),
            _ => name.strip_prefix("GraphDriver.")?,
        };
        Some(match name {
            "Init" => read::<Init>(body).map(Self::init),
            "Capabilities" => Ok(Self::Capabilities),
            "Status" => Ok(Self::Status),
            "Cleanup" => Ok(Self::Cleanup),
            "Create" | "CreateReadWrite" | "Remove" | "Get" | "Put" | "Exists" | "GetMetadata" | "Diff"
            | "Changes" | "DiffSize" => read(body).and_then(|layer| Self::of_layer(name, layer)),
            _ => return None,
        })
    }

    fn init(init: Init) -> Self {
        let moved = |map: &IdMap| map.container_id != map.host_id;
        let mut maps = init.uid_maps.iter().flatten().chain(init.gid_maps.iter().flatten());
        Self::Init {
            home: init.home.unwrap_or_default(),
            options: init.opts.unwrap_or_default(),
            mapped: maps.any(moved),
        }
    }

    fn of_layer(name: &str, layer: Layer) -> Result<Self, String> {
        let id = checked("ID", layer.id.unwrap_or_default())?;
        let parent = named(layer.parent);
        let parent = parent.map(|parent| checked("Parent", parent)).transpose()?;
        let label = named(layer.mount_label);
        Ok(match name {
            "Remove" => Self::Remove { id },
            "Get" => Self::Get { id, label },
            "Put" => Self::Put { id },
            "Exists" => Self::Exists { id },
            "GetMetadata" => Self::Metadata { id },
            "Diff" => Self::Diff { id, parent },
            "Changes" => Self::Changes { id, parent },
            "DiffSize" => Self::DiffSize { id, parent },
            _ => {
                let options = layer.storage_opt.unwrap_or_default().into_iter().collect();
                Self::Create { id, parent, options }
            }
        })
    }

    /// As metrics and logs call it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Init { .. } => "init",
            Self::Capabilities => "capabilities",
            Self::Create { .. } => "create",
            Self::Remove { .. } => "remove",
            Self::Get { .. } => "get",
            Self::Put { .. } => "put",
            Self::Exists { .. } => "exists",
            Self::Status => "status",
            Self::Metadata { .. } => "get-metadata",
            Self::Cleanup => "cleanup",
            Self::Diff { .. } => "diff",
            Self::Changes { .. } => "changes",
            Self::DiffSize { .. } => "diff-size",
        }
    }
}

/// Reads a body; none at all is an empty one.
fn read<T: serde::de::DeserializeOwned + Default>(body: &[u8]) -> Result<T, String> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|e| format!("read the request: {e}"))
}

fn named(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn checked(field: &str, id: String) -> Result<String, String> {
    if id.is_empty() || id.len() > LONGEST_ID || id.chars().any(char::is_control) {
        return Err(format!("{field} is not 1 to {LONGEST_ID} printable characters"));
    }
    Ok(id)
}

/// The layer and its parent, of `id=…&parent=…`.
pub(super) fn layer_of_query(query: &str) -> Result<(String, Option<String>), String> {
    let (mut id, mut parent) = (String::new(), None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "id" => id = decoded(value)?,
            "parent" => parent = named(Some(decoded(value)?)),
            _ => {}
        }
    }
    let parent = parent.map(|parent| checked("parent", parent)).transpose()?;
    Ok((checked("id", id)?, parent))
}

/// A value of a query: `%41` is A, and `+` a space.
fn decoded(text: &str) -> Result<String, String> {
    let digit = |byte: Option<u8>| {
        char::from(byte.unwrap_or_default())
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
            .ok_or("the query has a '%' that is not followed by two hexadecimal digits")
    };
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => digit(bytes.next())? << 4 | digit(bytes.next())?,
            _ => byte,
        });
    }
    String::from_utf8(out).map_err(|_| "the query is not UTF-8".to_owned())
}

/// An answer of a call.
pub(super) fn reply(status: StatusCode, reply: &Reply) -> Response<Body> {
    // Text and numbers always become JSON.
    let bytes = serde_json::to_vec(reply).unwrap_or_default();
    let mut response = Response::new(Body::Left(Full::from(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// An answer that is an error, or says how large something is.
pub(super) fn sized(result: Result<u64, String>) -> Response<Body> {
    let answer = match result {
        Ok(size) => Reply { size: Some(size), ..Reply::default() },
        Err(reason) => Reply { err: Some(reason), ..Reply::default() },
    };
    reply(StatusCode::OK, &answer)
}

/// An answer that is an error.
pub(super) fn refusal(status: StatusCode, reason: &str) -> Response<Body> {
    reply(status, &Reply { err: Some(reason.to_owned()), ..Reply::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_calls_are_read_as_daemons_write_them() {
        let read = |name: &str, body: &str| Message::parse(name, body.as_bytes());
        assert_eq!(read("Plugin.Activate", ""), Some(Ok(Message::Activate)));
        assert_eq!(
            read("GraphDriver.Create", r#"{"ID":"a","Parent":"b","StorageOpt":{"size":"1G"}}"#),
            Some(Ok(Message::Create {
                id: "a".into(),
                parent: Some("b".into()),
                options: vec![("size".into(), "1G".into())]
            }))
        );
        let create = Message::Create { id: "a".into(), parent: None, options: Vec::new() };
        let nulls = r#"{"ID":"a","Parent":"","StorageOpt":null,"New":[1]}"#;
        assert_eq!(read("GraphDriver.CreateReadWrite", nulls), Some(Ok(create)));
        let init =
            r#"{"Home":"/h","Opts":null,"UIDMaps":[{"container_id":0,"host_id":0,"size":9}],"GIDMaps":null}"#;
        let expected = Message::Init { home: "/h".into(), options: Vec::new(), mapped: false };
        assert_eq!(read("GraphDriver.Init", init), Some(Ok(expected)));
        let mapped = init.replace("\"host_id\":0", "\"host_id\":100000");
        let Some(Ok(Message::Init { mapped: true, .. })) = read("GraphDriver.Init", &mapped) else {
            panic!("{mapped}")
        };
        assert_eq!(read("GraphDriver.Destroy", "{}"), None);
        assert_eq!(read("Create", "{}"), None);
        for bad in ["", "{}", r#"{"ID":""}"#, r#"{"ID":"a\u0000"}"#, "{", "[]", r#"{"ID":5}"#] {
            assert!(matches!(read("GraphDriver.Get", bad), Some(Err(_))), "{bad}");
        }
        let long = format!(r#"{{"ID":"{}"}}"#, "x".repeat(256));
        assert!(matches!(read("GraphDriver.Get", &long), Some(Err(_))));
    }

    #[test]
    fn plain_queries_are_decoded() {
        assert_eq!(layer_of_query("id=a&parent="), Ok(("a".into(), None)));
        assert_eq!(layer_of_query("parent=%62&id=a%2Fb+c&x"), Ok(("a/b c".into(), Some("b".into()))));
        for bad in ["", "id=", "parent=x", "id=%4", "id=%zz", "id=%ff", "id=%+1", "id=a%00"] {
            assert!(layer_of_query(bad).is_err(), "{bad}");
        }
    }
}
