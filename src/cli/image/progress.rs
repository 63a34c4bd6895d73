//! How far long work is: bars on a terminal, nothing in a pipe.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oci_spec::image::Descriptor;
use parking_lot::Mutex;

use crate::image::digest;
use crate::image::store::Progress;

/// Bars, one for each blob that is worked on.
#[derive(Debug)]
pub struct Bars {
    all: Option<MultiProgress>,
    verb: &'static str,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// Shows bars where standard error is a terminal; each begins with `verb`.
    pub fn new(verb: &'static str) -> Self {
        let all = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { all, verb, bars: Mutex::new(HashMap::new()) }
    }

    /// Shows bars among those of `self`.
    pub fn beside(&self, verb: &'static str) -> Self {
        Self { all: self.all.clone(), verb, bars: Mutex::new(HashMap::new()) }
    }

    fn with(&self, blob: &Descriptor, call: impl FnOnce(&ProgressBar)) {
        let Some(all) = &self.all else { return };
        let mut bars = self.bars.lock();
        let bar = bars.entry(blob.digest().to_string()).or_insert_with(|| {
            let template =
                "{prefix} {wide_bar} {decimal_bytes:>9} of {decimal_total_bytes:>9} {decimal_bytes_per_sec:>12}";
            let style = ProgressStyle::with_template(template).map(|style| style.progress_chars("=> "));
            let prefix = format!("{:9} {}", self.verb, digest::short(blob.digest()));
            let bar = ProgressBar::new(blob.size()).with_prefix(prefix);
            all.add(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
        });
        call(bar);
    }
}

impl Progress for Bars {
    fn read(&self, blob: &Descriptor, bytes: u64) {
        self.with(blob, |bar| bar.inc(bytes));
    }

    fn done(&self, blob: &Descriptor) {
        self.with(blob, ProgressBar::finish);
    }
}
