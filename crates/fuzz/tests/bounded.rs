//! The corpus, replayed; then a few seconds of mutations of it for each target. Plain: works as any user, better as root.
//!
//! `VELLUM_FUZZ_SEED` gives other mutations, `VELLUM_FUZZ_MILLISECONDS` a longer run. An input that fails is written into the
//! target folder under `fuzz-findings/TARGET`, and named in the failure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vellum_fuzz::{Mutator, TARGETS, Target};

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut inputs: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Where an input that failed is kept.
fn keep(target: &Target, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-findings").join(target.name);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(vellum_types::Digest::sha256(input).hex());
    std::fs::write(&path, input).unwrap();
    path
}

fn feed(target: &Target, input: &[u8], what: &dyn Fn() -> String) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        panic!("{} fails with {}", target.name, what());
    }
}

fn bounded(name: &str) {
    let target = vellum_fuzz::find(name).unwrap();
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    for (path, input) in &inputs {
        feed(target, input, &|| path.display().to_string());
    }
    let seed = number("VELLUM_FUZZ_SEED", 1);
    let mut mutator = Mutator::new(inputs.into_iter().map(|(_, input)| input).collect(), seed);
    let usual = if std::env::var_os("VELLUM_TEST_ALL").is_some() { 30_000 } else { 1500 };
    let until = Instant::now() + Duration::from_millis(number("VELLUM_FUZZ_MILLISECONDS", usual));
    while Instant::now() < until {
        let input = mutator.input();
        feed(target, &input, &|| keep(target, &input).display().to_string());
    }
}

macro_rules! targets {
    ($($test:ident $name:literal,)*) => {
        $(#[test] fn $test() { bounded($name); })*

        #[test]
        fn plain_every_target_is_run_and_has_a_corpus_of_its_own() {
            let run: Vec<&str> = vec![$($name),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(run, all);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
            for entry in std::fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(all.contains(&name.as_str()), "a corpus of no target: {name}");
            }
            let bytes: usize = TARGETS.iter().flat_map(corpus).map(|(_, input)| input.len()).sum();
            assert!(bytes < 500 << 10, "the corpus has {bytes} bytes");
        }
    };
}

targets! {
    plain_header "header",
    plain_apply "apply",
    plain_compressed "compressed",
    plain_records "records",
    plain_layout "layout",
    plain_docker "docker",
    plain_stream "stream",
    plain_catalog "catalog",
    plain_whiteout "whiteout",
    plain_names "names",
}
