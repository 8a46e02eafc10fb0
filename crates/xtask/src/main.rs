//! Chores of the workspace, as `cargo xtask COMMAND`.
// A command of its own: what it prints is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod campaign;
mod fuzz;
mod image;
mod packages;
mod run;
mod test;
mod vm;

use clap::{Parser, Subcommand};
use std::process::{Command, ExitCode};

/// Chores of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Run all tests. Installs what they need from the distribution's packages if it may, and says what is missing if not.
    Test {
        /// Also what takes long: the large image, and long runs of what is cut short otherwise.
        #[arg(long)]
        all: bool,
    },
    /// Have something go wrong at random, over and over. Lines with CAMPAIGN tell what was done.
    Campaign {
        /// What; everything, one after the other, without one.
        #[arg(value_enum)]
        kind: Option<campaign::Kind>,
        /// How long each.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        /// Where the random numbers begin.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Build a test image, if it is not there yet, and print where it is.
    Image {
        /// Which.
        #[arg(value_enum)]
        kind: image::Kind,
    },
    /// Build the later Debians whose container engines are tested, if they are not there yet, and print where they are.
    Peers,
    /// Run tests that need another kernel (`vm_…`) in a throwaway machine: QEMU, with a kernel of Debian's.
    Vm {
        /// The package of the tests; all that need the machine without one.
        #[arg(long)]
        package: Option<String>,
        /// The file of its tests; those of its library without one.
        #[arg(long, requires = "package")]
        test: Option<String>,
        /// The suite of Debian whose kernel is booted, such as trixie; without one the new kernel, and Debian 13's for what works otherwise there.
        #[arg(long)]
        suite: Option<String>,
        /// Which tests, and other arguments for the test program.
        #[arg(requires = "package", trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Measure Vellum beside the tools people use today. Arguments go to the benchmark: see `cargo xtask bench -- --help`.
    Bench {
        /// For the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a fuzz target, or all of them one after the other, guided by coverage. Needs a C++ compiler.
    Fuzz {
        /// Which; all without one.
        target: Option<String>,
        /// For how long each.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
    },
    /// Write the man pages and the shells' completions to target/docs.
    Docs,
    /// Remove what killed tests left behind: mounts, folders, loop devices.
    Clean,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test { all } => test::test(all),
        Chore::Campaign { kind, minutes, seed } => campaign::campaign(kind, minutes, seed),
        Chore::Image { kind } => image::build(kind).map(|place| println!("{}", place.display())),
        Chore::Peers => {
            image::peers().map(|places| places.iter().for_each(|place| println!("{}", place.display())))
        }
        Chore::Vm { package, test, suite, filter } => {
            let tests = package.map(|package| vm::Tests::new(&package, test.as_deref(), &filter));
            vm::run(suite.as_deref(), tests).and_then(|counts| test::verdict(&counts))
        }
        Chore::Bench { arguments } => bench::bench(&arguments),
        Chore::Fuzz { target, minutes } => fuzz::fuzz(target.as_deref(), minutes),
        Chore::Docs => docs(),
        Chore::Clean => test::clean().map(drop),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn docs() -> Result<(), run::Error> {
    run::cargo(&["build", "--release", "--package", "vellum-cli"])?;
    let vellum = run::target().join("release/vellum");
    let docs = run::target().join("docs");
    let man = docs.join("man");
    std::fs::create_dir_all(&man).map_err(run::Error::at(format!("make {}", man.display())))?;
    run::run(Command::new(&vellum).arg("man").arg(&man))?;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let path = docs.join(format!("vellum.{shell}"));
        let file =
            std::fs::File::create(&path).map_err(run::Error::at(format!("write {}", path.display())))?;
        run::run(Command::new(&vellum).args(["completions", shell]).stdout(file))?;
    }
    println!("{}", docs.display());
    Ok(())
}
