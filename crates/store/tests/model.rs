//! Operations at random against a plain model: each is answered as the model says, and the store has what the model has.

mod common;

use common::model::{KINDS, Model, Op, perform};
use common::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::time::Instant;
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch};

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let one = (0..KINDS, 0..1u64 << 20, 0..1u64 << 20).prop_map(|(kind, a, b)| Op::of(kind, a, b));
    // An image first: without one nothing else has anything to work on.
    prop::collection::vec(one, 10..60).prop_map(|mut ops| {
        ops.splice(0..0, [Op::Load(0), Op::Create(0, 4)]);
        ops
    })
}

fn follow(dir: &std::path::Path, driver: &str, ops: &[Op]) -> std::result::Result<(), TestCaseError> {
    let reopen = || Store::open(&options(dir, driver)).unwrap();
    let mut store = reopen();
    let mut model = Model::default();
    for (at, op) in ops.iter().enumerate() {
        let wanted = model.apply(*op);
        let got = perform(&mut store, &reopen, driver, *op);
        let code = got.as_ref().copied().map_err(Error::code);
        prop_assert_eq!(code, wanted, "operation {}, {:?}: {:?}", at, op, got.map_err(|e| told(&e)));
    }
    let differences = model.compare(&store);
    prop_assert!(differences.is_empty(), "{:?}", differences);
    let findings = store.check(false, &Silent).unwrap();
    prop_assert!(findings.is_empty(), "{:?}", findings);
    store.gc(false).unwrap();
    let left = store.gc(true).unwrap();
    prop_assert!(left.items.is_empty(), "{:?}", left);
    Ok(())
}

fn against_the_model(test: &str, driver: &str) {
    // In memory: it is not about what reaches the disk.
    let scratch = match Scratch::new(place_of(driver, Kind::Tmpfs)) {
        Ok(scratch) => scratch,
        Err(e) => return vellum_testkit::skip::record(test, &e.to_string()),
    };
    let (duration, seed) = campaign(4);
    let begin = Instant::now();
    let mut cases = 0u32;
    for round in 0u64.. {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&round.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config =
            Config { cases: 4, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let number = std::cell::Cell::new(0u32);
        runner
            .run(&operations(), |ops| {
                number.set(number.get() + 1);
                let dir = scratch.folder(&format!("{round}-{}", number.get())).unwrap();
                let result = std::panic::catch_unwind(|| follow(&dir, driver, &ops));
                let _ = vellum_testkit::scratch::unmount_below(&dir);
                let _ = Store::reset(&options(&dir, driver));
                let _ = std::fs::remove_dir_all(&dir);
                result.unwrap_or_else(|_| Err(TestCaseError::fail("it panicked")))
            })
            .unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        cases += number.get();
        if begin.elapsed() > duration {
            break;
        }
    }
    report(&format!("model {driver}: {cases} sequences agree, seed {seed}"));
}

#[test]
fn root_the_store_does_what_a_plain_model_does_on_overlay() {
    against_the_model("root_the_store_does_what_a_plain_model_does_on_overlay", "overlay");
}

#[test]
fn root_the_store_does_what_a_plain_model_does_on_vfs() {
    against_the_model("root_the_store_does_what_a_plain_model_does_on_vfs", "vfs");
}

#[test]
fn root_the_store_does_what_a_plain_model_does_on_composefs() {
    against_the_model("root_the_store_does_what_a_plain_model_does_on_composefs", "composefs");
}

#[test]
fn root_the_store_does_what_a_plain_model_does_on_btrfs() {
    against_the_model("root_the_store_does_what_a_plain_model_does_on_btrfs", "btrfs");
}
