//! Blocking work of a request, on a thread that may block, counted and timed.

use crate::metrics::Meter;
use crate::threads;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// How long a work takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// About as long as it takes to wake a thread, or one sync.
    Short,
    /// It depends on how much there is to do.
    Long,
}

/// Runs `work` where blocking is allowed. `None` if it panicked: the error is logged, and the client is told that the server failed.
///
/// It runs to its end also when the client goes away meanwhile, so that nothing is left half done.
pub(crate) async fn blocking<T, E, F>(
    meter: &Meter,
    operation: &'static str,
    length: Length,
    work: F,
) -> Option<Result<T, E>>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
    F: FnOnce() -> Result<T, E> + Send + 'static,
{
    let begun = Instant::now();
    let result = if length == Length::Short && threads::is_alone() {
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| "a panic".to_owned())
    } else {
        threads::shared().spawn_blocking(work).await.map_err(|panic| panic.to_string())
    };
    let took = begun.elapsed();
    let milliseconds = took.as_secs_f64() * 1e3;
    match result {
        Ok(Ok(out)) => {
            meter.done(operation, took);
            tracing::debug!(door = meter.door(), operation, milliseconds, "done");
            Some(Ok(out))
        }
        Ok(Err(error)) => {
            meter.failed(operation, took);
            tracing::info!(door = meter.door(), operation, milliseconds, %error, "refused");
            Some(Err(error))
        }
        Err(panic) => {
            meter.failed(operation, took);
            tracing::error!(door = meter.door(), operation, error = panic, "the server failed");
            None
        }
    }
}
