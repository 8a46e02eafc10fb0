use crate::cli::{Global, given_name};
use crate::context;
use crate::failure::Result;
use crate::output::say;
use clap::Args;
use vellum_store::CommitOptions;
use vellum_types::ImageName;

/// Make an image of a container, and print its id
///
/// The image has the layers of the container's image and one more with what the container changed. The container goes on.
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Why
    #[arg(short, long)]
    message: Option<String>,
    /// Change the image's configuration by a line of a Dockerfile, such as 'CMD ["/bin/sh"]' or 'ENV A=b'
    #[arg(short, long, value_name = "LINE")]
    change: Vec<String>,
    /// The container, by name or id
    container: String,
    /// The image's name
    #[arg(value_parser = given_name)]
    name: Option<ImageName>,
}

impl Commit {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?;
        let options = CommitOptions {
            name: self.name.clone(),
            author: self.author.clone(),
            message: self.message.clone(),
            changes: self.change.clone(),
        };
        say(store.commit(&container.id, &options)?)
    }
}
