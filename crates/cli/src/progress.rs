//! Progress on standard error: only on a terminal, and only of work that takes a while.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vellum_store::{LayerOutcome, Progress};

/// Work that is done before this has passed draws nothing.
const PATIENCE: Duration = Duration::from_millis(250);
const FRAMES_PER_SECOND: u8 = 15;

/// A bar for each layer that is worked on.
pub(crate) struct Bars {
    started: Instant,
    drawn: Option<MultiProgress>,
    layers: Mutex<BTreeMap<usize, Layer>>,
}

struct Layer {
    label: String,
    total: Option<u64>,
    done: u64,
    bar: Option<ProgressBar>,
}

impl Bars {
    /// Bars, unless `quiet` or nobody is looking.
    pub(crate) fn new(quiet: bool) -> Self {
        let wanted = !quiet && std::io::stderr().is_terminal();
        let target = || ProgressDrawTarget::stderr_with_hz(FRAMES_PER_SECOND);
        Self {
            started: Instant::now(),
            drawn: wanted.then(|| MultiProgress::with_draw_target(target())),
            layers: Mutex::default(),
        }
    }

    /// Takes the bars off the screen.
    pub(crate) fn clear(&self) {
        if let Some(drawn) = &self.drawn {
            // A terminal that went away needs no clearing.
            let _ = drawn.clear();
        }
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Layer, &MultiProgress)) {
        let Some(drawn) = &self.drawn else { return };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = layers.get_mut(&index) {
            change(layer, drawn);
        }
    }
}

fn bar(label: &str, total: Option<u64>, drawn: &MultiProgress) -> ProgressBar {
    let (length, template) = match total {
        Some(total) => (total, "{prefix} [{bar:30}] {bytes:>9} / {total_bytes:9} {eta}"),
        None => (0, "{prefix} {spinner} {bytes:>9}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = drawn.add(ProgressBar::new(length).with_style(style.progress_chars("=> ")));
    bar.set_prefix(label.to_owned());
    bar
}

impl Progress for Bars {
    fn layer_started(&self, index: usize, label: &str, bytes: Option<u64>) {
        if self.drawn.is_some() {
            let layer = Layer { label: label.to_owned(), total: bytes, done: 0, bar: None };
            self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(index, layer);
        }
    }

    fn bytes(&self, index: usize, more: u64) {
        let late = self.started.elapsed() >= PATIENCE;
        self.change(index, |layer, drawn| {
            layer.done += more;
            if late {
                let bar = layer.bar.get_or_insert_with(|| bar(&layer.label, layer.total, drawn));
                bar.set_position(layer.done);
            }
        });
    }

    fn layer_done(&self, index: usize, _outcome: LayerOutcome) {
        self.change(index, |layer, _| {
            if let Some(bar) = layer.bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}
