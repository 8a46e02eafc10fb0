use crate::cli::{Format, Global};
use crate::context;
use crate::failure::{Failure, Result};
use crate::human;
use crate::output::{Out, note};
use clap::{Args, Subcommand, ValueEnum};
use vellum_store::{OpenOptions, PoolFs, PoolSpec, PoolStatus, Store};
use vellum_types::Size;

/// Keep the layers in a file with a file system of its own
///
/// On a file system without reflinks (ext4) the first write to a large file of an image copies all of it. A pool is an XFS or btrfs in a sparse file of
/// the store, on which it copies blocks. It grows by itself when it fills, gives back what is deleted, and is mounted by
/// whichever command needs it first.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    Create(Create),
    Status(Status),
    Grow(Grow),
    Trim(Trim),
    Check(Check),
    Umount(Umount),
    Rm(Rm),
}

impl Pool {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        match self {
            Self::Create(command) => command.run(global),
            Self::Status(command) => command.run(global),
            Self::Grow(command) => command.run(global),
            Self::Trim(command) => command.run(global),
            Self::Check(command) => command.run(global),
            Self::Umount(command) => command.run(global),
            Self::Rm(command) => command.run(global),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Xfs,
    Btrfs,
}

/// What a new pool is like.
#[derive(Debug, Clone, Args)]
pub(crate) struct New {
    /// Its size at first, as 500M, 20G or 1T; blocks are taken from the disk only when they are written [default: 20G]
    #[arg(long, value_parser = bytes)]
    size: Option<u64>,
    /// The file system in it [default: xfs]
    #[arg(long)]
    fs: Option<Kind>,
    /// Take all of its room from the disk now, so that nobody else can fill the disk beneath it
    #[arg(long)]
    preallocate: bool,
}

impl New {
    pub(crate) fn is_given(&self) -> bool {
        self.size.is_some() || self.fs.is_some() || self.preallocate
    }

    pub(crate) fn spec(&self) -> PoolSpec {
        let usual = PoolSpec::default();
        PoolSpec {
            size: self.size.unwrap_or(usual.size),
            fs: match self.fs {
                Some(Kind::Btrfs) => PoolFs::Btrfs,
                Some(Kind::Xfs) => PoolFs::Xfs,
                None => usual.fs,
            },
            preallocate: self.preallocate,
        }
    }
}

/// A number of bytes, or of KiB, MiB, GiB, TiB.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    text.parse::<Size>().map(Size::bytes).map_err(|wrong| wrong.reason.to_owned())
}

/// Options of the store for what must not make one.
fn there(global: &Global) -> Result<OpenOptions> {
    Ok(OpenOptions { create: false, ..context::options(global)? })
}

/// Give the store a pool
///
/// The store must be empty: what is there is not moved. `vellum init --pool` makes a new store with one.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    new: New,
    #[command(flatten)]
    format: Format,
}

impl Create {
    fn run(&self, global: &Global) -> Result<()> {
        let status = Store::pool_create(&context::options(global)?, &self.new.spec())?;
        warn(&status);
        show(&status, self.format)
    }
}

/// Show how the pool stands
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    format: Format,
}

impl Status {
    fn run(&self, global: &Global) -> Result<()> {
        let status = Store::pool_status(&there(global)?)?;
        warn(&status);
        show(&status, self.format)
    }
}

/// Make the pool larger now
///
/// It grows by itself when less than an eighth of it is free, as far as the disk has room above the reserve.
#[derive(Debug, Args)]
pub(crate) struct Grow {
    /// How large it is to be, as 40G [default: a step, as when it grows by itself]
    #[arg(value_parser = bytes)]
    size: Option<u64>,
    #[command(flatten)]
    format: Format,
}

impl Grow {
    fn run(&self, global: &Global) -> Result<()> {
        let status = context::open(global)?.pool_grow(self.size)?;
        warn(&status);
        show(&status, self.format)
    }
}

/// Give back to the disk what the pool does not use
///
/// What is deleted is given back as it goes; `vellum gc` trims, too. A preallocated pool keeps its room.
#[derive(Debug, Args)]
pub(crate) struct Trim {}

impl Trim {
    fn run(&self, global: &Global) -> Result<()> {
        let given = context::open(global)?.pool_trim()?;
        let mut out = Out::new();
        out.line(format_args!("Gave back: {}", human::size(given)))?;
        out.finish()
    }
}

/// Check the pool's file system with its own program
///
/// The pool is taken off for that, so nothing of the store may be mounted and no other process may have it open. It is mounted again after it, which
/// also mends a file system that had failed because the disk was full. `vellum check` compares what lies in it with what was recorded.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Have a damaged XFS repaired
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    format: Format,
}

impl Check {
    fn run(&self, global: &Global) -> Result<()> {
        let check = Store::pool_check(&there(global)?, self.repair)?;
        let mut out = Out::new();
        if self.format.json {
            out.json(&check)?;
        } else {
            for repaired in &check.repaired {
                out.line(format_args!("repaired: {repaired}"))?;
            }
            for finding in &check.findings {
                out.line(format_args!("found: {finding}"))?;
            }
            if check.findings.is_empty() {
                out.line(format_args!("The pool is sound ({}).", check.command))?;
            }
        }
        out.finish()?;
        if check.findings.is_empty() { Ok(()) } else { Err(Failure::Told(1)) }
    }
}

/// Take the pool off its mountpoint
///
/// The next command that needs the store mounts it again. Refused while somebody uses it.
#[derive(Debug, Args)]
pub(crate) struct Umount {}

impl Umount {
    fn run(&self, global: &Global) -> Result<()> {
        Ok(Store::pool_unmount(&there(global)?)?)
    }
}

/// Remove the pool of an empty store
///
/// The store goes on without one. To remove a store with all that is in it, use `vellum system reset`.
#[derive(Debug, Args)]
pub(crate) struct Rm {}

impl Rm {
    fn run(&self, global: &Global) -> Result<()> {
        Ok(Store::pool_remove(&there(global)?)?)
    }
}

/// Says when the pool promises more than there is.
pub(crate) fn warn(status: &PoolStatus) {
    if status.missing > 0 {
        note(format_args!(
            "note: the pool may become {} larger than the disk has room for above its reserve; loads are refused before that",
            human::size(status.missing)
        ));
    }
}

fn show(status: &PoolStatus, format: Format) -> Result<()> {
    let mut out = Out::new();
    if format.json {
        out.json(status)?;
    } else {
        tell(status, &mut out)?;
    }
    out.finish()
}

pub(crate) fn tell(status: &PoolStatus, out: &mut Out) -> Result<()> {
    let kept = if status.preallocated { ", preallocated" } else { "" };
    out.line(format_args!("Pool: {} of {}{kept}", status.fs.name(), human::size(status.size)))?;
    out.line(format_args!(" File: {}, takes {}", status.image.display(), human::size(status.allocated)))?;
    match (&status.failure, status.used, status.free) {
        (Some(failure), _, _) => {
            out.line(format_args!(" Failed: {failure}"))?;
            out.line(" `vellum pool check` mounts it anew")?;
        }
        (None, Some(used), Some(free)) => {
            let fill = used.saturating_mul(100) / used.saturating_add(free).max(1);
            out.line(format_args!(" Used: {}, {fill}%; free: {}", human::size(used), human::size(free)))?;
        }
        _ => out.line(" Not mounted: the next command that needs the store mounts it")?,
    }
    if let Some(device) = &status.device {
        out.line(format_args!(" Device: {}", device.display()))?;
    }
    let (free, floor) = (human::size(status.host_free), human::size(status.host_floor));
    out.line(format_args!(" Disk: {free} free, {floor} kept in reserve"))
}
