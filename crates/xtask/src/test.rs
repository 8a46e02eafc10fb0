//! All tests.

use crate::image::{Kind, build, peers};
use crate::run::{Error, cargo_command, target};
use crate::{packages, vm};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

/// What CI leaves out: it would take an hour.
const LEFT_OUT: [&str; 6] = [
    "a kill and a full disk at every named point on the drivers composefs and btrfs (CI: at every point on the others, kills at random on these)",
    "the large image: fourteen layers of Debian, loaded, saved and compared with what other tools make of it (CI: a small one)",
    "a minute each of kills, power cuts, sixty-four processes, flipped bits and random sequences, on each driver and file system \
     (CI: seconds each, sixteen processes; for longer: cargo xtask campaign)",
    "all tests of the store, and the conformance suite on composefs, in pools of XFS and of btrfs (CI: pools' own, and the life of a container)",
    "what needs a kernel with fs-verity or quotas of XFS, in a throwaway machine, the conformance suite among it, and composefs on Debian 13's kernel (alone: cargo xtask vm)",
    "half a minute of mutations for each fuzz target (CI: a second and a half; guided by coverage: cargo xtask fuzz)",
];

/// The file systems of the pools in which all tests of the store are run once more.
const POOLS: &[&str] = &["xfs", "btrfs"];

/// Removes what killed tests left behind; whether there was something.
pub(crate) fn clean() -> Result<bool, Error> {
    let cleaned =
        vellum_testkit::scratch::clean_leftovers().map_err(Error::at("clean up after killed tests"))?;
    if cleaned.mounts + cleaned.folders > 0 {
        println!("removed {} mounts and {} folders of killed tests", cleaned.mounts, cleaned.folders);
    }
    Ok(cleaned.mounts + cleaned.folders > 0)
}

/// Runs everything and counts it.
pub(crate) fn test(all: bool) -> Result<(), Error> {
    packages::install(packages::TEST)?;
    let _ = clean()?;
    let image = build(if all { Kind::Real } else { Kind::Small });
    if all && let Err(error) = peers() {
        eprintln!("no later container engines: {error}");
    }
    let skips = target().join("skipped-tests");
    if let Err(error) = std::fs::remove_file(&skips)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Error::at("remove the last run's list of skipped tests")(error));
    }
    // With fault points, so that the tests that arm them have something to arm.
    let mut command =
        cargo_command(&["test", "--workspace", "--no-fail-fast", "--features", "vellum-sys/faults"]);
    command.env(vellum_testkit::skip::VARIABLE, &skips).stdin(Stdio::null()).stdout(Stdio::piped());
    match &image {
        Ok(place) => drop(command.env("VELLUM_TEST_IMAGE", place)),
        Err(error) => eprintln!("no test image: {error}"),
    }
    if all {
        command.env("VELLUM_TEST_ALL", "1").env("VELLUM_CAMPAIGN_SECONDS", "60");
    }
    let mut counts = count(&mut command)?;
    for fs in if all { POOLS } else { &[] } {
        let mut command = cargo_command(&["test", "--package", "vellum-store", "--no-fail-fast"]);
        command.env("VELLUM_TEST_POOL", fs).env(vellum_testkit::skip::VARIABLE, &skips);
        counts.join(&count(command.stdin(Stdio::null()).stdout(Stdio::piped()))?);
    }
    if all {
        match vm::run(None, None) {
            Ok(inside) => counts.join(&inside),
            Err(error) => {
                eprintln!("error: the throwaway machine: {error}");
                counts.failed += 1;
            }
        }
    }
    if clean()? {
        println!("these tests left that behind, which they must not");
        counts.failed += 1;
    }
    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    let mut lines: Vec<&str> = skipped.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    for line in &lines {
        println!("{line}");
    }
    println!(
        "{}",
        if all { "run here, and left out by CI:" } else { "left out (cargo xtask test --all runs it):" }
    );
    LEFT_OUT.iter().for_each(|what| println!("  {what}"));
    // A skipped test has returned early, and cargo counts it as passed.
    let passed = counts.passed.saturating_sub(lines.len() as u64);
    println!("{passed} passed, {} failed, {} skipped", counts.failed, lines.len());
    verdict(&counts)
}

/// Whether all is well.
pub(crate) fn verdict(counts: &Counts) -> Result<(), Error> {
    match counts {
        Counts { failed: 0, ended_well: true, .. } => Ok(()),
        Counts { failed: 0, .. } => Err(Error::Failed("cargo test".into())),
        Counts { failed, .. } => Err(Error::Tests(*failed)),
    }
}

/// What came of tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ended_well: bool,
}

impl Counts {
    /// Adds those of another run.
    pub(crate) fn join(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ended_well &= other.ended_well;
    }

    /// Adds the line with which a test program ends: `test result: ok. 3 passed; 0 failed; …`.
    pub(crate) fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let words: Vec<&str> = rest.split([' ', ';']).collect();
            let at = words.iter().position(|w| *w == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
    }
}

fn count(command: &mut std::process::Command) -> Result<Counts, Error> {
    let mut child = command.spawn().map_err(Error::at("start `cargo test`"))?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(Error::at("read what `cargo test` prints"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            counts.add(&line);
        }
    }
    counts.ended_well = child.wait().map_err(Error::at("wait for `cargo test`"))?.success();
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        counts.add(
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        counts.add("test something ... ok");
        assert_eq!(counts, Counts { passed: 8, failed: 2, ended_well: false });
    }
}
