//! The status for people.

use std::fmt::Write;

use super::Shown;
use crate::cli::args;
use crate::cli::image::printable;
use crate::cli::stats::{self, When};

/// Writes `shown`; the paths may name anything, which must not reach a terminal as more than text.
pub fn write(shown: &Shown) -> String {
    let status = &shown.status;
    let mut text = format!("{}\n", shown.mountpoint.display());
    let mut lines = vec![
        ("version".to_owned(), format!("{} {}", args::NAME, env!("CARGO_PKG_VERSION"))),
        ("process".to_owned(), std::process::id().to_string()),
        ("mounted for".to_owned(), format!("{} s", status.age.as_secs())),
    ];
    lines.extend(shown.device.map(|_| ("device".to_owned(), shown.device())));
    lines.extend(status.layers.iter().map(|layer| {
        let open = if layer.private { "" } else { "  (not a private clone of its mount)" };
        (layer.role.name().to_owned(), format!("{}{open}", layer.path.display()))
    }));
    section(&mut text, "mount", &lines);
    let width = status.in_force.iter().map(|option| option.option.len() + option.value.len() + 1).max();
    let width = width.unwrap_or_default();
    text.push_str("options in force\n");
    for option in &status.in_force {
        let set = format!("{}={}", option.option, option.value);
        let _ = writeln!(text, "  {set:<width$}  {}", option.why); // A String takes everything.
    }
    if let Some(quota) = status.statistics.quota {
        let line = |what: &str, used: u64, limit: Option<u64>| {
            let limit = limit.map_or("without limit".to_owned(), |limit| format!("of {limit}"));
            (what.to_owned(), format!("{used} {limit}"))
        };
        let (used, limits) = (quota.used, quota.limits);
        let lines = [line("bytes", used.bytes, limits.bytes), line("inodes", used.inodes, limits.inodes)];
        section(&mut text, "quota", &lines);
    }
    text.push_str("statistics\n");
    text.push_str(&stats::table(&status.statistics, When::Now));
    printable(text.as_bytes())
}

fn section(text: &mut String, heading: &str, lines: &[(String, String)]) {
    let width = lines.iter().map(|(what, _)| what.len()).max().unwrap_or_default();
    let _ = writeln!(text, "{heading}"); // A String takes everything.
    for (what, value) in lines {
        let _ = writeln!(text, "  {what:<width$}  {value}"); // As above.
    }
}
