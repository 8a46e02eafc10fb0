//! Progress on standard error: only on a terminal, and only of work that takes a while.
//!
//! ```text
//! 42603ed9a117 [==========>                   ]   16.3MB /    48.7MB     a line for each layer that is worked on
//! 5 of 13 layers, 2s                                                     the last line counts
//! ```
//!
//! A thread waits until it is worth drawing, so that work that tells nothing for a long time (the check of a large layer) is
//! seen to go on, too. On a narrow terminal a percentage is in the place of the bar: lines that wrap cannot be drawn over.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vellum_store::{LayerOutcome, Progress};

/// Work that is done before this has passed draws nothing.
const PATIENCE: Duration = Duration::from_millis(250);
const FRAMES_PER_SECOND: u8 = 15;
/// The columns that a line with a bar takes.
const WIDE: u16 = 72;

/// What is drawn while layers are worked on; nothing when nobody is looking.
pub(crate) struct Bars(Option<Arc<Shared>>);

struct Shared {
    drawn: MultiProgress,
    state: Mutex<State>,
    /// Told when the work ends.
    ended: Condvar,
    total: Option<usize>,
}

#[derive(Default)]
struct State {
    /// The last line, once it is worth drawing.
    count: Option<ProgressBar>,
    layers: BTreeMap<usize, Layer>,
    done: usize,
    ended: bool,
}

struct Layer {
    label: String,
    total: Option<u64>,
    done: u64,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars of so many layers, if that is known; none if `quiet` or nobody is looking.
    pub(crate) fn new(quiet: bool, total: Option<usize>) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let target = ProgressDrawTarget::stderr_with_hz(FRAMES_PER_SECOND);
        let shared = Arc::new(Shared {
            drawn: MultiProgress::with_draw_target(target),
            state: Mutex::default(),
            ended: Condvar::new(),
            total,
        });
        let waiting = Arc::clone(&shared);
        // Without the thread nothing is drawn, and the work is done all the same.
        let _ = std::thread::Builder::new().name("progress".into()).spawn(move || waiting.begin_later());
        Self(Some(shared))
    }

    /// Takes the bars off the screen.
    pub(crate) fn clear(&self) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.lock();
        state.ended = true;
        for bar in state.layers.values_mut().filter_map(|layer| layer.bar.take()) {
            bar.finish_and_clear();
        }
        if let Some(count) = state.count.take() {
            count.finish_and_clear();
        }
        shared.ended.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to draw when the work takes long.
    fn begin_later(&self) {
        let waited = self.ended.wait_timeout_while(self.lock(), PATIENCE, |state| !state.ended);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return;
        }
        let style = ProgressStyle::with_template("{msg}, {elapsed}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
        let count = self.drawn.add(ProgressBar::no_length().with_style(style).with_elapsed(PATIENCE));
        state.count = Some(count.clone());
        self.tell(&state);
        for layer in state.layers.values_mut() {
            layer.draw(&self.drawn, &count);
        }
        count.enable_steady_tick(Duration::from_secs(1));
    }

    fn tell(&self, state: &State) {
        let Some(count) = &state.count else { return };
        count.set_message(match self.total {
            Some(total) => format!("{} of {}", state.done.min(total), crate::human::count(total, "layer")),
            None => crate::human::count(state.done, "layer"),
        });
    }
}

impl Layer {
    fn draw(&mut self, drawn: &MultiProgress, count: &ProgressBar) {
        let bar = ProgressBar::new(self.total.unwrap_or_default()).with_style(style(self.total.is_some()));
        let bar = drawn.insert_before(count, bar);
        bar.set_prefix(self.label.clone());
        self.move_on(&bar);
        self.bar = Some(bar);
    }

    fn move_on(&self, bar: &ProgressBar) {
        if self.total.is_some() {
            bar.set_position(self.done);
        } else if self.done > 0 {
            bar.set_message(crate::human::size(self.done));
        }
    }
}

fn style(measured: bool) -> ProgressStyle {
    let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col);
    let template = match (measured, columns >= WIDE) {
        (true, true) => "{prefix:12} [{bar:30}] {decimal_bytes:>10} / {decimal_total_bytes:>10}",
        (true, false) => "{prefix:12!} {percent:>3}%",
        (false, _) => "{prefix:12!} {msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// What a layer is called on the screen: the beginning of its digest, as in lists.
fn short(label: &str) -> &str {
    label.split_once(':').map_or(label, |(_, hex)| hex.get(..12).unwrap_or(hex))
}

impl Progress for Bars {
    fn layer_started(&self, index: usize, label: &str, bytes: Option<u64>) {
        let Some(shared) = &self.0 else { return };
        let mut layer = Layer { label: short(label).to_owned(), total: bytes, done: 0, bar: None };
        let mut state = shared.lock();
        if let Some(count) = &state.count {
            layer.draw(&shared.drawn, count);
        }
        state.layers.insert(index, layer);
    }

    fn bytes(&self, index: usize, more: u64) {
        let Some(shared) = &self.0 else { return };
        let state = &mut *shared.lock();
        let Some(layer) = state.layers.get_mut(&index) else { return };
        layer.done += more;
        if let Some(bar) = &layer.bar {
            layer.move_on(bar);
        }
    }

    fn layer_done(&self, index: usize, _outcome: LayerOutcome) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.lock();
        state.done += 1;
        shared.tell(&state);
        if let Some(bar) = state.layers.remove(&index).and_then(|layer| layer.bar) {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn labels_are_short() {
        assert_eq!(short("sha256:42603ed9a11744c0f86723a32d3fdf562c1da7418e"), "42603ed9a117");
        assert_eq!(short("layer 7"), "layer 7");
    }
}
