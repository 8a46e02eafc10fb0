use crate::cli::{Format, Global, Ids};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use crate::views;
use clap::Args;
use vellum_store::{Code, ContainerRow};
use vellum_types::ImageName;

/// List containers
///
/// All of them, always: Vellum runs none, so that there are no stopped ones to leave out.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Taken for the habit of it: all containers are listed anyway
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    ids: Ids,
    /// Measure what each container has written
    #[arg(short, long)]
    size: bool,
    #[command(flatten)]
    format: Format,
}

impl Ps {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open_or_make(global)?;
        let mut rows = store.containers()?;
        rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        if self.size {
            let mut measured = Vec::with_capacity(rows.len());
            for mut row in rows {
                match store.container_usage(&row.id) {
                    Ok(usage) => row.size = Some(usage),
                    // Removed by somebody since it was listed.
                    Err(error) if error.code() == Code::NotFound => continue,
                    Err(error) => return Err(error.into()),
                }
                measured.push(row);
            }
            rows = measured;
        }
        let mut out = Out::new();
        if self.format.json {
            out.json(&rows.into_iter().map(views::Container::from).collect::<Vec<_>>())?;
        } else if self.ids.quiet {
            for row in rows {
                out.line(self.ids.shown(row.id, row.id.short()))?;
            }
        } else {
            let mut headings = vec!["CONTAINER ID", "IMAGE", "CREATED", "MOUNTED AT", "NAME"];
            if self.size {
                headings.push("SIZE");
            }
            out.table(&headings, rows.iter().map(|row| self.line(row)).collect())?;
        }
        out.finish()
    }

    fn line(&self, row: &ContainerRow) -> Vec<String> {
        let image = row.image_name.as_ref().map_or_else(|| row.image.short(), ImageName::familiar);
        let mounted = row.mounted.as_ref().map(|path| path.display().to_string());
        let mut line = vec![
            self.ids.shown(row.id, row.id.short()),
            image,
            human::ago(row.created),
            mounted.unwrap_or_else(|| "-".into()),
            row.name.as_ref().map_or_else(|| "-".into(), ToString::to_string),
        ];
        if self.size {
            line.push(row.size.map_or_else(|| "-".into(), |usage| human::size(usage.bytes)));
        }
        line
    }
}
