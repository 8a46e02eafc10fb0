//! Names of images, normalised as docker does.

use crate::{Digest, ParseError, serde_as_text};
use std::fmt;
use std::str::FromStr;

/// What people call an image, in full: `docker.io/library/debian:12`.
///
/// Parsing normalises as docker's `reference.ParseNormalizedNamed` does: no registry means
/// `docker.io`, a single path component there means `library/`, no tag and no digest means
/// `latest`. [`ImageName::familiar`] is the short form again.
///
/// The grammar is that of the distribution project's `reference` package: a registry is a host name
/// or address with an optional port; path components are lower-case letters and digits with single
/// `.`, `_`, `__` or any number of `-` between; a tag is `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

const DEFAULT_REGISTRY: &str = "docker.io";

impl ImageName {
    /// The registry's host, with its port if it has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path in the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest after `@`.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/path`, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The repository's short form, as docker shows it: `debian`, `user/app`, `quay.io/x/y`. Where that would be
    /// read as another name (`docker.io/quay.io/x` without its registry), it is the full one.
    pub fn familiar_repository(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.repository();
        }
        match self.path.strip_prefix("library/") {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ if self.path.split_once('/').is_some_and(|(first, _)| is_registry(first)) => self.repository(),
            _ => self.path.clone(),
        }
    }

    /// The short form, as docker shows it: `debian:12`.
    pub fn familiar(&self) -> String {
        let mut out = self.familiar_repository();
        self.push_suffix(&mut out);
        out
    }

    fn push_suffix(&self, out: &mut String) {
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = self.repository();
        self.push_suffix(&mut out);
        f.pad(&out)
    }
}

/// Whether the first part of a name is a registry rather than the beginning of a path.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|c| c.is_ascii_uppercase())
}

fn valid_component(component: &str) -> bool {
    let alnum = |c: u8| c.is_ascii_digit() || c.is_ascii_lowercase();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(*first) || !alnum(*last) {
        return false;
    }
    bytes.split(|c| alnum(*c)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|c| *c == b'-')
    })
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => {
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                match rest.strip_prefix(':') {
                    Some(port) => (None, Some(port)),
                    None if rest.is_empty() => (None, None),
                    None => return false,
                }
            }
            None => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()))
}

fn valid_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

impl FromStr for ImageName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |reason| ParseError::new("image name", text, reason);
        if text.len() == 64 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)) {
            return Err(error("64 hexadecimal digits are an image's id"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| error(e.reason))?)),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            // A colon before a slash belongs to the registry's port.
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(error("a tag is up to 128 letters, digits, '_', '.' and '-'"));
        }
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            Some(_) => (DEFAULT_REGISTRY, rest.to_owned()),
            None => (DEFAULT_REGISTRY, format!("library/{rest}")),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        if !valid_registry(registry) {
            return Err(error("the registry is not a host name"));
        }
        if !path.split('/').all(valid_component) {
            return Err(error("a path is of lower-case letters and digits, with '.', '_' or '-' between"));
        }
        if registry.len() + 1 + path.len() > 255 {
            return Err(error("longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), path, tag, digest })
    }
}

serde_as_text!(ImageName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("keep:x", "docker.io/library/keep:x", "keep:x"),
            ("user/app:1", "docker.io/user/app:1", "user/app:1"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("index.docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            ("quay.io/a/b__c/d-e", "quay.io/a/b__c/d-e:latest", "quay.io/a/b__c/d-e:latest"),
            ("[::1]:80/a", "[::1]:80/a:latest", "[::1]:80/a:latest"),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), full, "{text}");
            assert_eq!(name.familiar(), familiar, "{text}");
            assert_eq!(full.parse::<ImageName>().unwrap(), name);
        }
        let digest = format!("debian@{}", Digest::sha256(b""));
        assert_eq!(digest.parse::<ImageName>().unwrap().tag(), None);
        for bad in [
            "",
            ":",
            "a:",
            "A",
            "a//b",
            "/a",
            "a/",
            "../a",
            "a..b",
            "a b",
            "a:b c",
            "a@sha256:0",
            "-a",
            "a_._b",
            "x.y:z/a",
            &"a".repeat(64),
            &format!("a:{}", "t".repeat(129)),
            &"a/".repeat(200),
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
