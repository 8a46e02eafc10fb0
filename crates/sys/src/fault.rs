//! Named points where tests make things go wrong.
//!
//! Every step that changes something durable passes a point: `fault::point("mount.acquire.recorded")?`. In a
//! build with the feature `faults` the environment says which point fails, and how:
//!
//! ```text
//! VELLUM_FAULT = rule [ "," rule ]…
//! rule         = name [ ":" nth ] [ "=" effect ]
//! nth          = 1, 2, … (the first time by default) or "*" (every time)
//! effect       = "abort" (the default) | "ENOSPC" | "EIO" | "EDQUOT" | "ENOMEM" | "EMFILE" | "EACCES" | "EINTR"
//! ```
//!
//! `abort` kills the process as SIGKILL does: nothing is unwound, nothing flushed, no core is written. Without the feature
//! a point is an inlined `Ok(())`.
//!
//! Names are `crate.operation.step`. Every crate that has points lists them in a constant, so that a test can try
//! each of them.

/// The environment variable that names what fails.
pub const VARIABLE: &str = "VELLUM_FAULT";

/// Fails here if the environment says so. See the module's documentation.
///
/// # Errors
/// The error the environment asked for.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "faults")]
pub use armed::point;

#[cfg(feature = "faults")]
mod armed {
    use rustix::io::Errno;
    use rustix::process::{Signal, getpid, kill_process};
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(super) struct Rule {
        pub(super) name: String,
        /// 0 is every time.
        pub(super) nth: u64,
        /// `None` kills the process.
        pub(super) error: Option<Errno>,
        passed: AtomicU64,
    }

    /// Fails here if the environment says so. See the module's documentation.
    ///
    /// # Errors
    /// The error the environment asked for.
    ///
    /// # Panics
    /// The environment variable has another form than the module's documentation says: a test that believes it
    /// injects a fault must not pass without one.
    pub fn point(name: &'static str) -> io::Result<()> {
        static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
        let rules = RULES.get_or_init(|| {
            std::env::var(super::VARIABLE).map_or_else(
                |_| Vec::new(),
                |text| {
                    parse(&text).unwrap_or_else(|bad| panic!("{}: '{bad}' is not a fault", super::VARIABLE))
                },
            )
        });
        for rule in rules.iter().filter(|rule| rule.name == name) {
            rule.pass()?;
        }
        Ok(())
    }

    impl Rule {
        fn pass(&self) -> io::Result<()> {
            let now = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
            if self.nth != 0 && self.nth != now {
                return Ok(());
            }
            match self.error {
                Some(error) => Err(error.into()),
                None => {
                    let _ = kill_process(getpid(), Signal::KILL);
                    std::process::abort()
                }
            }
        }
    }

    pub(super) fn parse(text: &str) -> Result<Vec<Rule>, &str> {
        text.split(',').filter(|rule| !rule.is_empty()).map(|rule| parse_rule(rule).ok_or(rule)).collect()
    }

    fn parse_rule(rule: &str) -> Option<Rule> {
        let (place, effect) = rule.split_once('=').unwrap_or((rule, "abort"));
        let (name, nth) = place.split_once(':').unwrap_or((place, "1"));
        let nth = if nth == "*" { 0 } else { nth.parse().ok().filter(|n| *n > 0)? };
        let error = match effect {
            "abort" => None,
            "ENOSPC" => Some(Errno::NOSPC),
            "EIO" => Some(Errno::IO),
            "EDQUOT" => Some(Errno::DQUOT),
            "ENOMEM" => Some(Errno::NOMEM),
            "EMFILE" => Some(Errno::MFILE),
            "EACCES" => Some(Errno::ACCESS),
            "EINTR" => Some(Errno::INTR),
            _ => return None,
        };
        Some(Rule { name: name.to_owned(), nth, error, passed: AtomicU64::new(0) })
    }
}

#[cfg(all(test, feature = "faults"))]
mod tests {
    use super::armed::parse;
    use rustix::io::Errno;

    #[test]
    fn plain_rules_are_parsed() {
        let rules = parse("a.b,c:3=ENOSPC,d:*=EIO").unwrap_or_default();
        let seen: Vec<_> = rules.iter().map(|r| (r.name.as_str(), r.nth, r.error)).collect();
        assert_eq!(seen, [("a.b", 1, None), ("c", 3, Some(Errno::NOSPC)), ("d", 0, Some(Errno::IO))]);
        for bad in ["a:0", "a:x", "a=EWHAT"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
