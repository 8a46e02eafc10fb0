use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;
use vellum_archive::target::Usage;
use vellum_store::ContainerRow;
use vellum_types::{ContainerId, ContainerName, ImageId, ImageName, LayerId};

/// List containers
///
/// All of them, always: Vellum runs none, so that there are no stopped ones to leave out.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Taken for the habit of it: all containers are listed anyway
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Measure what each container has written
    #[arg(short, long)]
    size: bool,
    #[command(flatten)]
    format: Format,
}

/// A container, as `--json` shows it.
#[derive(Debug, Serialize)]
struct View {
    id: ContainerId,
    name: Option<ContainerName>,
    image: ImageId,
    image_name: Option<ImageName>,
    driver: String,
    layer: LayerId,
    created: Timestamp,
    mounted: Option<PathBuf>,
    size: Option<Usage>,
    save_points: usize,
}

impl From<ContainerRow> for View {
    fn from(row: ContainerRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            image: row.image,
            image_name: row.image_name,
            driver: row.driver,
            layer: row.layer,
            created: row.created,
            mounted: row.mounted,
            size: row.size,
            save_points: row.save_points,
        }
    }
}

impl Ps {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open_or_make(global)?;
        let mut rows = store.containers()?;
        rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        if self.size {
            for row in &mut rows {
                row.size = Some(store.container_usage(&row.id)?);
            }
        }
        let mut out = Out::new();
        if self.format.json {
            out.json(&rows.into_iter().map(View::from).collect::<Vec<_>>())?;
        } else if self.quiet {
            for row in rows {
                out.line(self.id(&row.id))?;
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

    fn id(&self, id: &ContainerId) -> String {
        if self.no_trunc { id.to_string() } else { id.short() }
    }

    fn line(&self, row: &ContainerRow) -> Vec<String> {
        let image = row.image_name.as_ref().map_or_else(|| row.image.short(), ImageName::familiar);
        let mounted = row.mounted.as_ref().map(|path| path.display().to_string());
        let mut line = vec![
            self.id(&row.id),
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
