//! How far long work is: bars on a terminal, nothing in a pipe.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oci_spec::image::Digest;
use parking_lot::Mutex;

use crate::image::digest;
use crate::image::store::{Progress, Work};

/// Bars, one for each piece of work.
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

    fn with(&self, work: &Work, call: impl FnOnce(&ProgressBar)) {
        let Some(all) = &self.all else { return };
        let mut bars = self.bars.lock();
        let bar = bars.entry(work.name.clone()).or_insert_with(|| {
            let template = match work.bytes {
                Some(_) => {
                    "{prefix} {wide_bar} {decimal_bytes:>9} of {decimal_total_bytes:>9} {decimal_bytes_per_sec:>12}"
                }
                None => "{prefix} {decimal_bytes:>9} {decimal_bytes_per_sec:>12}",
            };
            let style = ProgressStyle::with_template(template).map(|style| style.progress_chars("=> "));
            let name = Digest::try_from(work.name.as_str());
            let name = name.map_or_else(|_| work.name.clone(), |digest| digest::short(&digest).to_owned());
            let bar = work.bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let bar = bar.with_prefix(format!("{:9} {name}", self.verb));
            all.add(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
        });
        call(bar);
    }
}

impl Progress for Bars {
    fn moved(&self, work: &Work, bytes: u64) {
        self.with(work, |bar| bar.inc(bytes));
    }

    fn done(&self, work: &Work) {
        // One that is dropped stays on the screen, and makes room for others below.
        if let Some(bar) = self.bars.lock().remove(&work.name) {
            bar.finish();
        }
    }
}
