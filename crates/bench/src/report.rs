//! The table and its JSON.

use crate::lines::{Bench, Figures};
use crate::run::Error;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// Everything measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Vec<(String, String)>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    line: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    #[serde(flatten)]
    figures: Option<Figures>,
}

impl Report {
    /// An empty one, headed by the machine's facts.
    pub(crate) fn new(bench: &Bench) -> Self {
        Self { machine: bench.machine(), rows: Vec::new() }
    }

    /// A measured line: one row for each of its figures.
    pub(crate) fn add(&mut self, line: &'static str, figures: Vec<Figures>) {
        self.rows.extend(figures.into_iter().map(|figures| Row {
            line,
            missing: None,
            figures: Some(figures),
        }));
    }

    /// A line that could not be measured here.
    pub(crate) fn skip(&mut self, line: &'static str, what: &str) {
        self.rows.push(Row { line, missing: Some(what.to_owned()), figures: None });
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::at("write JSON")(e.into()))?;
        std::fs::write(path, text).map_err(Error::at(format!("write {}", path.display())))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.machine {
            writeln!(f, "{name}: {value}")?;
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["line", "figure", "vellum", "beside", "ratio", "goal", "met"]);
        for row in &self.rows {
            match &row.figures {
                Some(figures) => table.add_row([
                    row.line.to_owned(),
                    figures.what.clone(),
                    figures.shown(figures.vellum),
                    figures.beside.map_or_else(|| "-".into(), |beside| figures.shown(beside)),
                    figures.ratio().map_or_else(
                        || "-".into(),
                        |ratio| match ratio {
                            ratio if ratio < 0.01 => format!("{ratio:.5}"),
                            ratio => format!("{ratio:.2}"),
                        },
                    ),
                    figures.goal.to_string(),
                    if figures.met() { "yes" } else { "NO" }.to_owned(),
                ]),
                None => table.add_row([
                    row.line.to_owned(),
                    format!("{} is missing", row.missing.as_deref().unwrap_or("something")),
                ]),
            };
        }
        write!(f, "{table}")
    }
}
