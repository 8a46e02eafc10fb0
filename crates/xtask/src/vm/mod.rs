//! Tests in a throwaway machine, whose kernel has what this machine's may lack.
//!
//! Tests that need it are called `vm_…`. Elsewhere they skip, with the reason; in the machine they run, and a skipped one is a failure.

mod cpio;
mod machine;

use crate::packages;
use crate::run::{Error, cargo_command};
use crate::test::Counts;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// The suite of Debian whose kernel is booted when none is named: a new one, with fs-verity and overlays over mounts that have no place.
const SUITE: &str = "trixie-backports";
/// Debian 13 as it is installed, Linux 6.12: its overlays lie only over mounts that have a place, and find objects only with metacopy.
const OLDER: &str = "trixie";
/// Set inside.
const INSIDE: &str = "VELLUM_TEST_VM";
/// Emulated, with one processor: ten to forty times slower than the machine it runs on.
const TIME: Duration = Duration::from_secs(90 * 60);
/// Handed on to the tests.
const HANDED_ON: &[&str] = &["VELLUM_TEST_CASE", "VELLUM_TEST_ALL", "RUST_BACKTRACE"];

/// A test program of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tests {
    package: String,
    /// The name of the file in `tests`; that of the library's own without one.
    test: Option<String>,
    filter: Vec<String>,
}

impl Tests {
    pub(crate) fn new(package: &str, test: Option<&str>, filter: &[String]) -> Self {
        Self { package: package.into(), test: test.map(Into::into), filter: filter.to_vec() }
    }

    /// What bears on the difference between this suite's kernel and others.
    fn on(suite: &str) -> Vec<Self> {
        let vm = ["vm_".to_owned()];
        if suite == OLDER {
            return vec![
                Self::new("vellum-overlayfs", None, &[]),
                Self::new("vellum-driver-composefs", None, &["root_".to_owned()]),
                Self::new("vellum-driver-composefs", Some("verity"), &[]),
                Self::new("vellum-mount", Some("mounts"), &[]),
                Self::new("vellum-server", None, &["flattened".to_owned()]),
                Self::new(
                    "vellum-testkit",
                    Some("conformance"),
                    &["composefs::root_tmpfs".to_owned(), "sizes::".to_owned()],
                ),
            ];
        }
        vec![
            Self::new("vellum-sys", None, &["verity".to_owned()]),
            Self::new("vellum-driver-composefs", Some("verity"), &vm),
            Self::new("vellum-store", Some("verity"), &vm),
            Self::new("vellum-testkit", Some("conformance"), &vm),
        ]
    }

    /// Builds the program; where it is.
    fn build(&self) -> Result<PathBuf, Error> {
        let mut command =
            cargo_command(&["test", "--no-run", "--message-format=json", "--package", &self.package]);
        match &self.test {
            Some(test) => command.args(["--test", test]),
            None => command.arg("--lib"),
        };
        let output = command.stderr(Stdio::inherit()).output().map_err(Error::at("start `cargo test`"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let program =
            said.lines().rev().find_map(|line| line.split_once(r#""executable":""#)?.1.split_once('"'));
        match program {
            Some((program, _)) if output.status.success() => Ok(program.into()),
            _ => Err(Error::Failed(format!("{command:?}"))),
        }
    }

    /// Runs them in a machine.
    fn run(&self, suite: &str) -> Result<Counts, Error> {
        let program = self.build()?;
        let handed =
            HANDED_ON.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        let inside = [(INSIDE, "1"), ("TMPDIR", "/tmp"), ("HOME", "/root")];
        let inside = inside.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let variables: Vec<_> = inside.chain(handed).collect();
        let arguments = [&self.filter[..], &["--nocapture".to_owned()]].concat();
        let job = machine::Job {
            program: &program,
            arguments: &arguments,
            variables: &variables,
            disks: &[],
            time: TIME,
        };
        let (mut counts, mut skipped) = (Counts::default(), 0);
        let status = machine::perform(suite, &job, &mut |line| {
            println!("{line}");
            counts.add(line);
            skipped += u64::from(line.contains("SKIP "));
        })?;
        if skipped > 0 {
            println!("{skipped} were skipped in the machine that is made for them");
        }
        counts.failed += skipped;
        counts.ended_well = status == 0 && skipped == 0;
        Ok(counts)
    }
}

/// Runs tests in a machine with a kernel of that suite: these, or all that need it. Without a suite all on each of theirs.
pub(crate) fn run(suite: Option<&str>, tests: Option<Tests>) -> Result<Counts, Error> {
    match (suite, tests) {
        (suite, Some(tests)) => run_on(suite.unwrap_or(SUITE), &[tests]),
        (Some(suite), None) => run_on(suite, &Tests::on(suite)),
        (None, None) => {
            let mut counts = run_on(SUITE, &Tests::on(SUITE))?;
            counts.join(&run_on(OLDER, &Tests::on(OLDER))?);
            Ok(counts)
        }
    }
}

fn run_on(suite: &str, all: &[Tests]) -> Result<Counts, Error> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Error::Missing("the throwaway machine is for x86-64".into()));
    }
    packages::install(packages::VM)?;
    let mut counts = Counts { ended_well: true, ..Counts::default() };
    for tests in all {
        println!(
            "== on the kernel of {suite}: {} {}",
            tests.package,
            tests.test.as_deref().unwrap_or("(library)")
        );
        counts.join(&tests.run(suite)?);
    }
    Ok(counts)
}
