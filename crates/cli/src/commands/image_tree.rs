use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::human;
use crate::output::Out;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use vellum_store::LayerRow;
use vellum_types::{DiffId, ImageId, LayerId};

/// Show which layers images share
///
/// Each line is a layer; what is below and indented lies on it.
#[derive(Debug, Args)]
pub(crate) struct Tree {
    /// Only the layers of this image
    image: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// A layer with those on it, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Node {
    layer: LayerId,
    diff_id: DiffId,
    bytes: u64,
    images: Vec<Named>,
    children: Vec<Node>,
}

#[derive(Debug, Clone, Serialize)]
struct Named {
    id: ImageId,
    names: Vec<String>,
}

#[derive(Default)]
struct Forest {
    layers: BTreeMap<LayerId, LayerRow>,
    children: BTreeMap<Option<LayerId>, Vec<LayerId>>,
    images: BTreeMap<LayerId, Vec<Named>>,
}

impl Tree {
    pub(super) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let images = match &self.image {
            Some(reference) => vec![store.find_image(reference)?],
            None => store.images()?,
        };
        let mut forest = Forest::default();
        for image in images {
            let names = image.names.iter().map(vellum_types::ImageName::familiar).collect();
            let mut top = None;
            for layer in store.image_layers(&image.id)? {
                top = Some(layer.id);
                if let std::collections::btree_map::Entry::Vacant(free) = forest.layers.entry(layer.id) {
                    forest.children.entry(layer.parent).or_default().push(layer.id);
                    free.insert(layer);
                }
            }
            if let Some(top) = top {
                forest.images.entry(top).or_default().push(Named { id: image.id, names });
            }
        }
        let mut out = Out::new();
        if self.format.json {
            out.json(&forest.below(None))?;
        } else {
            print(&forest, &mut out)?;
        }
        out.finish()
    }
}

impl Forest {
    fn on(&self, parent: Option<LayerId>) -> &[LayerId] {
        self.children.get(&parent).map(Vec::as_slice).unwrap_or_default()
    }

    /// The recursion is as deep as the longest chain, which the driver bounds.
    fn below(&self, parent: Option<LayerId>) -> Vec<Node> {
        let node = |id: &LayerId| {
            let layer = self.layers.get(id)?;
            Some(Node {
                layer: *id,
                diff_id: layer.diff_id,
                bytes: layer.size.bytes,
                images: self.images.get(id).cloned().unwrap_or_default(),
                children: self.below(Some(*id)),
            })
        };
        self.on(parent).iter().filter_map(node).collect()
    }

    fn text(&self, layer: &LayerRow) -> String {
        let mut text = format!("{} {}", &layer.diff_id.digest().hex()[..12], human::size(layer.size.bytes));
        for image in self.images.get(&layer.id).into_iter().flatten() {
            let names = if image.names.is_empty() {
                format!("<{}>", image.id.short())
            } else {
                image.names.join(", ")
            };
            text.push_str(&format!("  {names}"));
        }
        text
    }
}

/// A chain without branches goes straight down; only branches are indented, so that a deep image stays on the screen.
fn print(forest: &Forest, out: &mut Out) -> Result<()> {
    let mut pending: Vec<(LayerId, String, bool)> =
        forest.on(None).iter().rev().map(|id| (*id, String::new(), true)).collect();
    let mut first = true;
    while let Some((id, indent, starts)) = pending.pop() {
        let Some(layer) = forest.layers.get(&id) else { continue };
        if starts && indent.is_empty() && !std::mem::take(&mut first) {
            out.line("")?;
        }
        let (lead, rest) = indent.split_at(indent.len().saturating_sub(2));
        let drawn =
            if starts && !rest.is_empty() { format!("{lead}└─") } else { format!("{lead}{rest}") };
        out.line(format_args!("{drawn}{}", forest.text(layer)))?;
        let children = forest.on(Some(id));
        let branches = children.len() > 1;
        for child in children.iter().rev() {
            let deeper = if branches { format!("{indent}  ") } else { indent.clone() };
            pending.push((*child, deeper, branches));
        }
    }
    Ok(())
}
