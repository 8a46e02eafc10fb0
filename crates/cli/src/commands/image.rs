use crate::cli::{Format, Global, given_name};
use crate::context;
use crate::failure::{Result, for_each};
use crate::human;
use crate::output::Out;
use crate::views;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use vellum_store::{ImageRow, LayerRow, Store};
use vellum_types::{DiffId, ImageName};

/// Look at images and name them
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    Inspect(Inspect),
    Tag(Tag),
    History(History),
    Tree(super::image_tree::Tree),
}

impl Image {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        match self {
            Self::Inspect(command) => command.run(global),
            Self::Tag(command) => command.run(global),
            Self::History(command) => command.run(global),
            Self::Tree(command) => command.run(global),
        }
    }
}

/// Show all that is known of images
///
/// With --json, a list of one object for each image: names, sizes, layers with their digests, the configuration as it is,
/// and the manifest the image came with.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    image: views::Image,
    layer_list: Vec<views::Layer>,
    config: Value,
    manifest: Option<Value>,
}

impl Inspect {
    fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let mut views = Vec::new();
        let mut out = Out::new();
        let outcome = for_each(&self.images, |reference| {
            let row = store.find_image(reference)?;
            if self.format.json {
                views.push(inspect(&store, row)?);
                return Ok(());
            }
            describe(&store, &row, &mut out)
        });
        if self.format.json {
            out.json(&views)?;
        }
        out.finish()?;
        outcome
    }
}

fn inspect(store: &Store, row: ImageRow) -> Result<Inspected> {
    let manifest = store.image_manifest(&row.id)?;
    Ok(Inspected {
        layer_list: store.image_layers(&row.id)?.into_iter().map(views::Layer::from).collect(),
        config: serde_json::from_slice(&store.image_config(&row.id)?)?,
        manifest: manifest.map(|bytes| serde_json::from_slice(&bytes)).transpose()?,
        image: row.into(),
    })
}

fn describe(store: &Store, row: &ImageRow, out: &mut Out) -> Result<()> {
    let config: Value = serde_json::from_slice(&store.image_config(&row.id)?)?;
    let names: Vec<String> = row.names.iter().map(ImageName::familiar).collect();
    let words = |key: &str| {
        let list = config.pointer(key)?.as_array()?;
        Some(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
    };
    let text = |key: &str| config.pointer(key).and_then(Value::as_str).map(str::to_owned);
    let mut pairs = vec![
        ("Id".to_owned(), row.id.to_string()),
        ("Names".to_owned(), if names.is_empty() { "<none>".into() } else { names.join(", ") }),
    ];
    let mut add = |name: &str, value: Option<String>| {
        pairs.extend(value.filter(|value| !value.is_empty()).map(|value| (name.to_owned(), value)));
    };
    add("Created", row.created.map(|at| at.to_string()));
    add("Platform", row.platform.as_ref().map(ToString::to_string));
    add("Author", text("/author"));
    add("Entrypoint", words("/config/Entrypoint"));
    add("Command", words("/config/Cmd"));
    add("User", text("/config/User"));
    add("Working folder", text("/config/WorkingDir"));
    add("Size", Some(human::size(row.size)));
    add("Shared", Some(human::size(row.shared)));
    add("Unique", Some(human::size(row.unique)));
    add("Containers", Some(row.containers.to_string()));
    out.pairs(&pairs)?;
    for (at, layer) in store.image_layers(&row.id)?.iter().enumerate() {
        out.line(format_args!("Layer {at}: {} {}", layer.diff_id, human::size(layer.size.bytes)))?;
    }
    Ok(())
}

/// Give an image further names
///
/// A name that another image has is taken away from it.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image, by name or id
    image: String,
    /// The names
    #[arg(required = true, value_name = "NAME", value_parser = given_name)]
    names: Vec<ImageName>,
}

impl Tag {
    fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let image = store.find_image(&self.image)?;
        for name in &self.names {
            store.tag(&image.id, name)?;
        }
        Ok(())
    }
}

/// Show how an image was made, the latest step first
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The image, by name or id
    image: String,
    /// Do not shorten the steps
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    format: Format,
}

/// A step, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Step {
    created: Option<Timestamp>,
    created_by: String,
    author: Option<String>,
    comment: String,
    diff_id: Option<DiffId>,
    bytes: u64,
}

impl History {
    fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let image = store.find_image(&self.image)?;
        let config: Value = serde_json::from_slice(&store.image_config(&image.id)?)?;
        let mut layers = store.image_layers(&image.id)?.into_iter();
        let mut steps = Vec::new();
        for entry in config.get("history").and_then(Value::as_array).into_iter().flatten() {
            let empty = entry.get("empty_layer").and_then(Value::as_bool).unwrap_or_default();
            steps.push(step(Some(entry), if empty { None } else { layers.next() }));
        }
        // Layers that no step tells of.
        steps.extend(layers.map(|layer| step(None, Some(layer))));
        steps.reverse();
        let mut out = Out::new();
        if self.format.json {
            out.json(&steps)?;
        } else {
            let rows = steps.iter().map(|step| self.line(step)).collect();
            out.table(&["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"], rows)?;
        }
        out.finish()
    }

    fn line(&self, step: &Step) -> Vec<String> {
        const WIDTH: usize = 45;
        let mut made: String = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
        if !self.no_trunc && made.chars().count() > WIDTH {
            made = made.chars().take(WIDTH - 1).chain(['…']).collect();
        }
        vec![
            step.diff_id.map_or_else(|| "<none>".into(), |id| id.digest().hex()[..12].to_owned()),
            step.created.map_or_else(|| "N/A".into(), human::ago),
            made,
            human::size(step.bytes),
            step.comment.clone(),
        ]
    }
}

fn step(entry: Option<&Value>, layer: Option<LayerRow>) -> Step {
    let text = |key| entry.and_then(|entry| entry.get(key)?.as_str()).unwrap_or_default().to_owned();
    Step {
        created: text("created").parse().ok(),
        created_by: text("created_by"),
        author: Some(text("author")).filter(|author| !author.is_empty()),
        comment: text("comment"),
        diff_id: layer.as_ref().map(|layer| layer.diff_id),
        bytes: layer.map_or(0, |layer| layer.size.bytes),
    }
}
