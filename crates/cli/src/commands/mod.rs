//! The commands, one file each. A command's documentation is its manual.

pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod completions;
pub(crate) mod create;
pub(crate) mod demo;
pub(crate) mod df;
pub(crate) mod diff;
pub(crate) mod driver;
pub(crate) mod export;
pub(crate) mod gc;
pub(crate) mod image;
mod image_tree;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod init;
pub(crate) mod load;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod pool;
pub(crate) mod ps;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod rollback;
pub(crate) mod save;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod snapshots;
pub(crate) mod system;
pub(crate) mod umount;
pub(crate) mod unshare;

use crate::cli::{Cli, Command};
use crate::failure::Result;

/// Does what the command line says.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let global = &cli.global;
    match &cli.command {
        Command::Load(command) => command.run(global),
        Command::Save(command) => command.run(global),
        Command::Images(command) => command.run(global),
        Command::Image(command) => command.run(global),
        Command::Rmi(command) => command.run(global),
        Command::Create(command) => command.run(global),
        Command::Ps(command) => command.run(global),
        Command::Mount(command) => command.run(global),
        Command::Umount(command) => command.run(global),
        Command::Diff(command) => command.run(global),
        Command::Commit(command) => command.run(global),
        Command::Snapshot(command) => command.run(global),
        Command::Snapshots(command) => command.run(global),
        Command::Rollback(command) => command.run(global),
        Command::Rm(command) => command.run(global),
        Command::Export(command) => command.run(global),
        Command::Import(command) => command.run(global),
        Command::Df(command) => command.run(global),
        Command::Gc(command) => command.run(global),
        Command::Check(command) => command.run(global),
        Command::Unshare(command) => command.run(global),
        Command::Serve(command) => command.run(global),
        Command::System(command) => command.run(global),
        Command::Init(command) => command.run(global),
        Command::Pool(command) => command.run(global),
        Command::Info(command) => command.run(global),
        Command::Driver(command) => command.run(global),
        Command::Demo(command) => command.run(global),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    }
}
