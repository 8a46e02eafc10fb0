//! The table of commands: parser, help, man pages and completions come from it.

use crate::commands;
use clap::{Args, FromArgMatches as _, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use vellum_types::ImageName;

/// Keeps container images and containers, copying only what is written.
///
/// A container's root file system comes into being in milliseconds, whatever its image's size, because layers are shared
/// and only changes are kept. Vellum runs no containers: it gives engines and people the root file systems.
///
/// Images are named as docker names them: `debian` is `docker.io/library/debian:latest`. Containers and images
/// are also known by their ids, or by the beginning of an id that no other has.
#[derive(Debug, Parser)]
#[command(name = "vellum", version, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The one table of exit codes, for `--help` and the man page. [`crate::failure`] gives them.
const EXIT_CODES: &str = "\
Exit codes:
  0    it is done
  1    an error of another kind; `check` has findings
  2    the command line is wrong
  3    there is no such image, container, save point, file or store
  4    it is in use: mounted, or others depend on it
  5    it exists already
  6    there is no space left, or less than the store keeps in reserve
  7    something is damaged: an archive, a layer, the catalog
  8    not possible here: the driver, the kernel, or a newer store
  141  whoever read the output stopped reading";

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The store's folder [default: /var/lib/vellum as root, $XDG_DATA_HOME/vellum otherwise]
    #[arg(
        long,
        global = true,
        overrides_with = "root",
        value_name = "DIR",
        help_heading = "Options of every command",
        env = "VELLUM_ROOT",
        hide_env = true
    )]
    pub(crate) root: Option<PathBuf>,
    /// The storage driver [default: the one the store has, or the best that works here]
    #[arg(
        long,
        global = true,
        overrides_with = "driver",
        value_name = "NAME",
        help_heading = "Options of every command",
        env = "VELLUM_DRIVER",
        hide_env = true
    )]
    pub(crate) driver: Option<String>,
}

/// A name to give to an image. A digest is not given: it is of the bytes that an image came in, and whoever asks for it relies on that.
pub(crate) fn given_name(text: &str) -> Result<ImageName, String> {
    let name: ImageName = text.parse().map_err(|error: vellum_types::ParseError| error.to_string())?;
    if name.digest().is_some() {
        return Err("a digest cannot be given to an image: it has that of its manifest, or none".to_owned());
    }
    Ok(name)
}

/// How a list or an inspection is shown.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Format {
    /// Print JSON instead of a text for people
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a list shows what it lists.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Ids {
    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl Ids {
    /// An id as it is wanted.
    pub(crate) fn shown(self, full: impl std::fmt::Display, short: String) -> String {
        if self.no_trunc { full.to_string() } else { short }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Load(commands::load::Load),
    Save(commands::save::Save),
    Images(commands::images::Images),
    #[command(subcommand)]
    Image(commands::image::Image),
    Rmi(commands::rmi::Rmi),
    Create(commands::create::Create),
    Ps(commands::ps::Ps),
    Mount(commands::mount::Mount),
    Umount(commands::umount::Umount),
    Diff(commands::diff::Diff),
    Commit(commands::commit::Commit),
    Snapshot(commands::snapshot::Snapshot),
    Snapshots(commands::snapshots::Snapshots),
    Rollback(commands::rollback::Rollback),
    Rm(commands::rm::Rm),
    Export(commands::export::Export),
    Import(commands::import::Import),
    Df(commands::df::Df),
    Gc(commands::gc::Gc),
    Check(commands::check::Check),
    Unshare(commands::unshare::Unshare),
    Serve(commands::serve::Serve),
    #[command(subcommand)]
    System(commands::system::System),
    Init(commands::init::Init),
    #[command(subcommand)]
    Pool(commands::pool::Pool),
    Info(commands::info::Info),
    #[command(subcommand)]
    Driver(commands::driver::Driver),
    Demo(commands::demo::Demo),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
}

impl Cli {
    /// Parses the command line. Building the table of all commands takes longer than most commands do, so those that engines call for every
    /// container are parsed with their own row of it; what that row does not understand, and every wish for help, is for the table.
    pub(crate) fn read() -> Self {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Self::by_row(&arguments).unwrap_or_else(|| {
            Self::try_parse_from(arguments).unwrap_or_else(|error| crate::output::answer(&error))
        })
    }

    fn by_row(arguments: &[OsString]) -> Option<Self> {
        let mut at = 1;
        while matches!(arguments.get(at).and_then(|word| word.to_str()), Some("--root" | "--driver")) {
            at += 2;
        }
        match arguments.get(at).and_then(|word| word.to_str())? {
            "create" => row(arguments, at, Command::Create),
            "mount" => row(arguments, at, Command::Mount),
            "umount" => row(arguments, at, Command::Umount),
            "diff" => row(arguments, at, Command::Diff),
            "rm" => row(arguments, at, Command::Rm),
            "ps" => row(arguments, at, Command::Ps),
            _ => None,
        }
    }
}

fn row<T: Args>(arguments: &[OsString], at: usize, command: fn(T) -> Command) -> Option<Cli> {
    let table = clap::Command::new("vellum").disable_help_flag(true);
    let table = T::augment_args(Global::augment_args(table));
    let words = arguments.iter().enumerate().filter(|(index, _)| *index != at).map(|(_, word)| word);
    let mut matches = table.try_get_matches_from(words.map(OsString::as_os_str).map(OsStr::to_owned)).ok()?;
    Some(Cli {
        global: Global::from_arg_matches_mut(&mut matches).ok()?,
        command: command(T::from_arg_matches_mut(&mut matches).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn plain_a_row_says_what_the_table_says() {
        for line in [
            "vellum create app",
            "vellum --root /r --driver vfs create --name web --storage-opt a=b app",
            "vellum mount web --root /r",
            "vellum --root /a --root /b mount --volatile web",
            "vellum umount --all",
            "vellum rm -f web db",
            "vellum diff --json web",
            "vellum ps",
            "vellum ps --json --driver vfs",
        ] {
            let row = Cli::by_row(&words(line)).unwrap_or_else(|| panic!("{line}"));
            let table = Cli::try_parse_from(words(line)).unwrap();
            assert_eq!(format!("{row:?}"), format!("{table:?}"), "{line}");
        }
    }

    #[test]
    fn plain_what_a_row_does_not_understand_is_for_the_table() {
        for line in [
            "vellum",
            "vellum --root",
            "vellum --root=/r create app",
            "vellum create",
            "vellum create --help",
            "vellum create -h",
            "vellum mount --version",
            "vellum mount --read-only --volatile web",
            "vellum rm --unknown web",
            "vellum images",
            "vellum help create",
        ] {
            assert!(Cli::by_row(&words(line)).is_none(), "{line}");
        }
    }
}
