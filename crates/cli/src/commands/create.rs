use crate::cli::Global;
use crate::context;
use crate::failure::{Result, during, usage};
use crate::output::say;
use clap::Args;
use vellum_store::{Code, CreateOptions};
use vellum_types::ContainerName;

/// Make a container of an image, and print its id
///
/// Nothing of the image is copied: the container is an empty layer of its own on the image's.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The container's name
    #[arg(long)]
    name: Option<ContainerName>,
    /// An option of the storage driver for this container, such as size=10G
    #[arg(long, value_name = "NAME=VALUE")]
    storage_opt: Vec<String>,
    /// The image, by name or id
    image: String,
}

impl Create {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let option = |text: &String| {
            text.split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| usage(format!("'{text}' is no storage option: write it as NAME=VALUE")))
        };
        let storage = self.storage_opt.iter().map(option).collect::<Result<_>>()?;
        let store = context::open(global)?;
        let image = store.image_id(&self.image)?;
        let made = store.create_container(&image, CreateOptions { name: self.name.clone(), storage });
        say(made.map_err(|error| match error.code() {
            // The driver knows of layers only.
            Code::Unsupported => during(format!("make a container of {}", self.image))(error.into()),
            _ => error.into(),
        })?)
    }
}
