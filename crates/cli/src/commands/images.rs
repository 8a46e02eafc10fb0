use crate::cli::{Format, Global, Ids};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use crate::views;
use clap::Args;
use vellum_store::ImageRow;
use vellum_types::ImageName;

/// List images
///
/// SIZE is what an image's layers take on disk, UNIQUE how much of it no other image shares: what removing the image would
/// give back.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Only images of this repository or name
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    ids: Ids,
    #[command(flatten)]
    format: Format,
}

impl Images {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open_or_make(global)?;
        let mut rows = store.images()?;
        if let Some(wanted) = &self.name {
            for row in &mut rows {
                row.names.retain(|name| matches(name, wanted));
            }
            rows.retain(|row| !row.names.is_empty());
        }
        // The newest first, as docker has it; then by name, so that the order is always the same.
        rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| (&a.names, a.id).cmp(&(&b.names, b.id))));
        let mut out = Out::new();
        if self.format.json {
            out.json(&rows.into_iter().map(views::Image::from).collect::<Vec<_>>())?;
        } else if self.ids.quiet {
            for row in rows {
                out.line(self.ids.shown(row.id, row.id.short()))?;
            }
        } else {
            let headings = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "UNIQUE"];
            out.table(&headings, rows.iter().flat_map(|row| self.lines(row)).collect())?;
        }
        out.finish()
    }

    /// A line for each name.
    fn lines(&self, row: &ImageRow) -> Vec<Vec<String>> {
        let none = || "<none>".to_owned();
        let line = |repository: String, tag: String| {
            vec![
                repository,
                tag,
                self.ids.shown(row.id, row.id.short()),
                row.created.map_or_else(|| "N/A".into(), human::ago),
                human::size(row.size),
                human::size(row.unique),
            ]
        };
        if row.names.is_empty() {
            return vec![line(none(), none())];
        }
        let tag = |name: &ImageName| name.tag().map_or_else(none, str::to_owned);
        row.names.iter().map(|name| line(name.familiar_repository(), tag(name))).collect()
    }
}

/// Whether a name is the wanted one, or of the wanted repository.
fn matches(name: &ImageName, wanted: &str) -> bool {
    wanted.parse::<ImageName>().is_ok_and(|w| {
        w == *name
            || (w.repository() == name.repository()
                && !wanted.ends_with(&format!(":{}", w.tag().unwrap_or_default())))
    })
}
