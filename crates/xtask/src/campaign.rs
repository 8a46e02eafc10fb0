//! Long runs of the tests that are cut short everywhere else: kills, power cuts, full disks, crowds, flipped bits, random sequences.

use crate::run::{self, Error};
use clap::ValueEnum;

/// What goes wrong, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL at random moments over random operations.
    Kill,
    /// Power cuts at random moments on ext4, XFS and btrfs.
    Power,
    /// Sixty-four processes in one store.
    Many,
    /// Disks without a byte or an inode left, and ENOSPC at every step.
    Full,
    /// Bits flipped at random places of a store.
    Flips,
    /// Random sequences against a plain model.
    Model,
}

impl Kind {
    /// The test programs of the crate `vellum-store`, and which of their tests.
    fn tests(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kill => &[("kill", "root_"), ("faults", "killed")],
            Self::Power => &[("power", "loop_")],
            Self::Many => &[("many", "root_")],
            Self::Full => &[("full", "loop_"), ("faults", "full_disk")],
            Self::Flips => &[("flips", "root_")],
            Self::Model => &[("model", "root_")],
        }
    }
}

/// Runs a campaign, or all of them, for about so many minutes each, the tests of a program at the same time. All are run, also when one fails.
pub(crate) fn campaign(kind: Option<Kind>, minutes: u64, seed: u64) -> Result<(), Error> {
    crate::packages::install(crate::packages::TEST)?;
    let _ = crate::test::clean()?;
    let kinds = kind.as_ref().map_or(Kind::value_variants(), std::slice::from_ref);
    let mut failed = Vec::new();
    for (program, tests) in kinds.iter().flat_map(|kind| kind.tests()) {
        let mut command = run::cargo_command(&["test", "--package", "vellum-store", "--test", program]);
        command.args(["--", "--nocapture", tests]);
        command.env("VELLUM_TEST_ALL", "1");
        command.env("VELLUM_CAMPAIGN_SECONDS", (minutes * 60).to_string());
        command.env("VELLUM_CAMPAIGN_SEED", seed.to_string());
        println!("== {program}: {tests}");
        if let Err(error) = run::run(&mut command) {
            eprintln!("error: {error}");
            failed.push(*program);
        }
        if crate::test::clean()? {
            eprintln!("error: {program} left that behind, which it must not");
            failed.push(*program);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(format!("campaign {}", failed.join(", ")))) }
}
