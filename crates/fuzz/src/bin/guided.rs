//! Runs one target with libFuzzer: the target that `VELLUM_FUZZ_TARGET` names, with libFuzzer's own arguments.
#![no_main]

use std::sync::OnceLock;
use vellum_fuzz::{Target, find};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("VELLUM_FUZZ_TARGET").unwrap_or_default();
        find(&name).unwrap_or_else(|| panic!("VELLUM_FUZZ_TARGET names no target: '{name}'"))
    });
    (target.run)(data);
});
