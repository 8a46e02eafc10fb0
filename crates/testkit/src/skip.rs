//! Tests that cannot run here.
//!
//! A test that needs what this machine does not have says so and is counted, so that nobody takes a suite for
//! green that ran half: the line `SKIP name: reason` on standard error, and one line in the file that the
//! environment variable `VELLUM_SKIPS` names. `cargo xtask test` sets it and prints the reasons at the end.

use std::io::Write as _;

/// The environment variable that names the file in which skipped tests are counted.
pub const VARIABLE: &str = "VELLUM_SKIPS";

/// Records that the test `name` is skipped, and why. Use [`skip!`](crate::skip!).
pub fn record(name: &str, reason: &str) {
    let line = format!("SKIP {name}: {reason}\n");
    // One write to a file opened for appending: lines of tests that run at once do not mix.
    if let Some(path) = std::env::var_os(VARIABLE)
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Skips the test that calls it: `skip!("needs root")` says why, counts, and returns.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        let thread = std::thread::current();
        let name = format!("{}::{}", module_path!(), thread.name().unwrap_or("?"));
        $crate::skip::record(&name, &format!($($reason)+));
        return;
    }};
}
