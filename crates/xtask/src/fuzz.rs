//! Long runs of the fuzz targets, guided by coverage.
//!
//! libFuzzer is linked into one program for all targets (`vellum-fuzz-guided`), and everything is compiled with the compiler's own
//! instrumentation for it. That needs a C++ compiler and the switch that lets a stable compiler take its unstable options;
//! no other toolchain and no tool of cargo's. The corpus in the tree is what a run begins with; what it learns stays in the target
//! folder, so that the next one goes on from there.

use crate::run::{Error, cargo_command, has, root, run, target};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What libFuzzer asks of the compiler: counters at every edge, and the operands of comparisons.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// An input may take this long, and a run as much memory.
const LIMITS: [&str; 4] = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=16384", "-print_final_stats=1"];

/// Runs `name`, or every target one after the other, for so many minutes each.
pub(crate) fn fuzz(name: Option<&str>, minutes: u64) -> Result<(), Error> {
    let corpus = root().join("crates/fuzz/corpus");
    let mut names = folders(&corpus)?;
    if let Some(name) = name {
        if !names.iter().any(|other| other == name) {
            return Err(Error::Missing(format!("there is no target '{name}': {}", names.join(", "))));
        }
        names.retain(|other| other == name);
    }
    let program = build()?;
    let mut failed = Vec::new();
    for name in &names {
        println!("== {name}");
        if let Err(error) = guided(&program, name, &corpus.join(name), minutes) {
            eprintln!("error: {error}");
            failed.push(name.as_str());
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(format!("fuzz {}", failed.join(", ")))) }
}

fn folders(corpus: &Path) -> Result<Vec<String>, Error> {
    let at = |error| Error::at(format!("list {}", corpus.display()))(error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(corpus).map_err(at)? {
        names.push(entry.map_err(at)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds the program, in a folder of its own: with other options nothing of an ordinary build can be used.
fn build() -> Result<PathBuf, Error> {
    if !has("c++") && !has("g++") {
        return Err(Error::Missing("libFuzzer is C++: a C++ compiler is missing (g++)".into()));
    }
    let folder = target().join("fuzz");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo_command(&["build", "--release", "--package", "vellum-fuzz"]);
    // With a target named, what runs while building is not instrumented.
    command.args(["--features", "libfuzzer", "--target", &host]);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", INSTRUMENTATION)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_TARGET_DIR", &folder);
    run(&mut command)?;
    Ok(folder.join(host).join("release/vellum-fuzz-guided"))
}

fn guided(program: &Path, name: &str, corpus: &Path, minutes: u64) -> Result<(), Error> {
    let learned = target().join("fuzz-corpus").join(name);
    let findings = target().join("fuzz-findings").join(name);
    for folder in [&learned, &findings] {
        std::fs::create_dir_all(folder).map_err(Error::at(format!("make {}", folder.display())))?;
    }
    let mut command = Command::new(program);
    command.args(LIMITS).arg(format!("-max_total_time={}", minutes * 60));
    command.arg(format!("-artifact_prefix={}/", findings.display())).args([learned.as_path(), corpus]);
    command.env("VELLUM_FUZZ_TARGET", name).env("RUST_BACKTRACE", "1");
    // A run makes millions of files.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    run(&mut command)
}
