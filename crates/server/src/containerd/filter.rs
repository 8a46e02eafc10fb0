//! containerd's filter language (pkg/filters of containerd), over snapshots.
//!
//! ```text
//! filter    := selector ("," selector)*              all of them
//! selector  := path [ ("==" | "!=" | "~=") value ]   without a value: the field is there
//! path      := field ("." field)*                    name, parent, kind, labels.<name>
//! field     := quoted | [A-Za-z] [A-Za-z0-9_]*
//! value     := quoted | [^\s,]+
//! quoted    := "…" with Go's escapes, or /…/ or |…| with only the delimiter and \ escaped (values of ~= only)
//! ```
//!
//! Of several filters one must match. `~=` is a regular expression there; here too, in the syntax of the `regex` crate, which is as Go's.

use regex::Regex;
use vellum_store::{SnapshotKind, SnapshotRow};

/// Filters, of which one must match; none matches all.
#[derive(Debug)]
pub(super) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Different(String),
    Matches(Regex),
}

/// Compiled expressions take no more memory than this.
const EXPRESSION: usize = 1 << 20;
/// Filters of a request.
const MOST: usize = 128;

impl Filters {
    /// Reads the filters of a request.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(super) fn parse(filters: &[String]) -> Result<Self, String> {
        if filters.len() > MOST {
            return Err(format!("more than {MOST} filters"));
        }
        let parse = |text: &String| {
            Parser { text, at: 0 }
                .filter()
                .map_err(|(at, why)| format!("the filter '{}' is wrong at {at}: {why}", text.escape_debug()))
        };
        Ok(Self(filters.iter().map(parse).collect::<Result<_, _>>()?))
    }

    pub(super) fn matches(&self, row: &SnapshotRow) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(|selector| selector.matches(row)))
    }
}

impl Selector {
    fn matches(&self, row: &SnapshotRow) -> bool {
        let value = self.value(row);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value.unwrap_or_default() == want,
            Test::Different(want) => value.unwrap_or_default() != want,
            Test::Matches(want) => want.is_match(value.unwrap_or_default()),
        }
    }

    fn value<'a>(&self, row: &'a SnapshotRow) -> Option<&'a str> {
        let (first, rest) = self.path.split_first()?;
        match (first.as_str(), rest) {
            ("name", []) => Some(&row.key),
            ("parent", []) => Some(row.parent.as_deref().unwrap_or_default()),
            ("kind", []) => Some(match row.kind {
                SnapshotKind::Active => "active",
                SnapshotKind::View => "view",
                SnapshotKind::Committed => "committed",
            }),
            // A label's name may be written as it is, with its dots.
            ("labels", rest) if !rest.is_empty() => row.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

type Parsed<T> = Result<T, (usize, &'static str)>;

impl Parser<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        if there {
            self.at += text.len();
        }
        there
    }

    fn fail<T>(&self, why: &'static str) -> Parsed<T> {
        Err((self.at, why))
    }

    fn filter(mut self) -> Parsed<Vec<Selector>> {
        let mut selectors = Vec::new();
        while self.at < self.text.len() {
            selectors.push(self.selector()?);
            if self.at < self.text.len() && !self.take(",") {
                return self.fail("a comma or the end was expected");
            }
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Parsed<Selector> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        let test = if self.take("==") {
            Test::Equal(self.value(false)?)
        } else if self.take("!=") {
            Test::Different(self.value(false)?)
        } else if self.take("~=") {
            let from = self.at;
            let text = self.value(true)?;
            let expression = regex::RegexBuilder::new(&text).size_limit(EXPRESSION).build();
            Test::Matches(expression.map_err(|_| (from, "this is no regular expression that can be used"))?)
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Parsed<String> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(c) if c.is_ascii_alphabetic() => {
                let length = self
                    .rest()
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(self.rest().len());
                let field = self.rest().get(..length).unwrap_or_default().to_owned();
                self.at += length;
                Ok(field)
            }
            _ => self.fail("a field was expected"),
        }
    }

    fn value(&mut self, expression: bool) -> Parsed<String> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(c @ ('/' | '|')) if expression => self.quoted(c),
            _ => {
                let length =
                    self.rest().find(|c: char| c.is_whitespace() || c == ',').unwrap_or(self.rest().len());
                if length == 0 {
                    return self.fail("a value was expected");
                }
                let value = self.rest().get(..length).unwrap_or_default().to_owned();
                self.at += length;
                Ok(value)
            }
        }
    }

    fn quoted(&mut self, delimiter: char) -> Parsed<String> {
        let from = self.at;
        self.at += delimiter.len_utf8();
        let mut out = String::new();
        while let Some(c) = self.peek() {
            self.at += c.len_utf8();
            if c == delimiter {
                return Ok(out);
            }
            if c != '\\' {
                out.push(c);
            } else if delimiter == '"' {
                out.push(self.escape()?);
            } else {
                // Of an expression only the delimiter is escaped; the rest is the expression's own.
                let next = self.peek().unwrap_or('\\');
                if next != delimiter {
                    out.push('\\');
                }
                out.push(next);
                self.at += next.len_utf8();
            }
        }
        Err((from, "the closing quote is missing"))
    }

    /// The escapes of Go's strings.
    fn escape(&mut self) -> Parsed<char> {
        let Some(c) = self.peek() else { return self.fail("something was expected after the backslash") };
        self.at += c.len_utf8();
        let digits = match c {
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'v' => return Ok('\u{b}'),
            '\\' | '"' | '\'' => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return self.fail("there is no such escape"),
        };
        let code = self.rest().get(..digits).and_then(|text| u32::from_str_radix(text, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.fail("this is no character"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use vellum_types::LayerId;

    fn row(key: &str, parent: &str, labels: &[(&str, &str)]) -> SnapshotRow {
        let labels: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        SnapshotRow {
            key: key.into(),
            kind: SnapshotKind::Committed,
            parent: (!parent.is_empty()).then(|| parent.to_owned()),
            layer: LayerId::new(1).unwrap(),
            labels,
            created: jiff::Timestamp::UNIX_EPOCH,
            updated: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn found(filters: &[&str]) -> String {
        let rows = [
            row("a", "", &[("containerd.io/snapshot.ref", "sha256:1"), ("x", "1")]),
            row("b", "a", &[("containerd.io/snapshot.ref", "sha256:2")]),
            row("c/d", "a", &[("x", "2,3"), ("dotted.name", "yes")]),
        ];
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        let filters = Filters::parse(&filters).unwrap();
        rows.iter()
            .filter(|row| filters.matches(row))
            .map(|row| row.key.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn plain_filters_choose_as_containerds_do() {
        assert_eq!(found(&[]), "a b c/d");
        assert_eq!(found(&[""]), "a b c/d");
        assert_eq!(found(&["name==a", "name==b"]), "a b");
        assert_eq!(found(&["parent==a,labels.x"]), "c/d");
        // What containerd itself asks for a snapshot that a remote snapshotter has.
        assert_eq!(found(&[r#"labels."containerd.io/snapshot.ref"==sha256:2,parent=="a""#]), "b");
        assert_eq!(found(&[r#"labels."containerd.io/snapshot.ref"==sha256:1,parent=="""#]), "a");
        assert_eq!(found(&["kind!=committed"]), "");
        assert_eq!(found(&[r#"labels.x=="2,3""#]), "c/d");
        assert_eq!(found(&["labels.dotted.name==yes"]), "c/d");
        assert_eq!(found(&["labels.x!=1"]), "b c/d");
        assert_eq!(found(&["name~=^[ab]$"]), "a b");
        assert_eq!(found(&[r"name~=/c\/d/"]), "c/d");
        assert_eq!(found(&["nothing"]), "");
    }

    #[test]
    fn plain_wrong_filters_are_refused_with_the_place() {
        for (filter, why) in [
            ("==a", "at 0: a field"),
            ("name==", "at 6: a value"),
            ("name==\"a", "at 6: the closing quote"),
            ("name==a b", "at 7: a comma"),
            ("name~=(", "at 6: this is no regular"),
            (r#"name=="\q""#, "no such escape"),
            ("name~=(a{1000}){1000}", "no regular expression that can be used"),
        ] {
            let error = Filters::parse(&[filter.to_owned()]).unwrap_err();
            assert!(error.contains(why), "{filter}: {error}");
        }
    }
}
