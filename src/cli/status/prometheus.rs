//! The status in the text format of Prometheus, version 0.0.4 (prometheus.io, "Exposition formats").
//!
//! Every sample has the mountpoint as a label, so that the texts of several mounts can be told apart in one file.

use std::fmt::{Display, Write};

use super::Shown;

/// Writes `shown`.
pub fn write(shown: &Shown) -> String {
    let status = &shown.status;
    let statistics = &status.statistics;
    let (usage, copy_ups, caches) = (statistics.usage, statistics.copy_ups, statistics.caches);
    let mut page = Page { text: String::new(), mountpoint: shown.mountpoint.to_string_lossy().into_owned() };

    page.metric("info", "gauge", "The mount that the other samples are of; always 1.");
    page.sample("info", &[("version", env!("CARGO_PKG_VERSION")), ("device", &shown.device())], 1);
    page.metric("option_info", "gauge", "An option in force, and why; always 1.");
    for option in &status.in_force {
        page.sample("option_info", &[("option", option.option), ("value", &option.value), ("why", &option.why)], 1);
    }
    page.metric("layer_info", "gauge", "A directory of the union, from upper down; always 1.");
    for (index, layer) in status.layers.iter().enumerate() {
        let (index, path) = (index.to_string(), layer.path.to_string_lossy());
        page.sample("layer_info", &[("index", &index), ("role", layer.role.name()), ("path", &path)], 1);
    }
    page.metric("uptime_seconds", "gauge", "The time since the mount was made.");
    page.sample("uptime_seconds", &[], status.age.as_secs_f64());
    page.metric("inodes", "gauge", "Inodes that the kernel knows.");
    page.sample("inodes", &[], usage.inodes);
    page.metric("descriptors", "gauge", "Descriptors kept open; a handle may share that of a file.");
    for (kind, count) in [("directory", usage.directories), ("file", usage.files), ("handle", usage.handles)] {
        page.sample("descriptors", &[("kind", kind)], count);
    }
    page.metric("descriptors_kept_max", "gauge", "The most directories and files that are kept open.");
    page.sample("descriptors_kept_max", &[], usage.kept_at_most);
    page.metric("copy_ups_total", "counter", "Objects brought from lower layers to upper.");
    page.sample("copy_ups_total", &[], copy_ups.objects);
    page.metric("copy_up_bytes_total", "counter", "Bytes of data copied from lower layers to upper.");
    page.sample("copy_up_bytes_total", &[], copy_ups.bytes);
    page.metric("copy_up_seconds_total", "counter", "Time that copy-ups took, each for itself.");
    page.sample("copy_up_seconds_total", &[], copy_ups.time.as_secs_f64());
    page.metric("requests_total", "counter", "Requests of the kernel by operation.");
    for (operation, count) in statistics.requests.iter() {
        page.sample("requests_total", &[("operation", operation.name())], count);
    }
    let caches = [
        ("upper_directories", caches.upper_directories),
        ("lower_directories", caches.lower_directories),
        ("files", caches.files),
        ("names", caches.names),
    ];
    page.metric("cache_hits_total", "counter", "How often a cache had what was asked for.");
    for (cache, hits) in caches {
        page.sample("cache_hits_total", &[("cache", cache)], hits.hits);
    }
    page.metric("cache_misses_total", "counter", "How often a cache had not what was asked for.");
    for (cache, hits) in caches {
        page.sample("cache_misses_total", &[("cache", cache)], hits.misses);
    }
    if let Some(quota) = statistics.quota {
        let resources =
            [("bytes", quota.used.bytes, quota.limits.bytes), ("inodes", quota.used.inodes, quota.limits.inodes)];
        page.metric("quota_used", "gauge", "What upper holds.");
        for (resource, used, _) in resources {
            page.sample("quota_used", &[("resource", resource)], used);
        }
        page.metric("quota_limit", "gauge", "What upper may hold.");
        for (resource, _, limit) in resources {
            if let Some(limit) = limit {
                page.sample("quota_limit", &[("resource", resource)], limit);
            }
        }
    }
    page.metric("absences_total", "counter", "Names that were not there, which the kernel was told to remember.");
    page.sample("absences_total", &[], statistics.absences);
    page.text
}

/// A page of metrics.
struct Page {
    text: String,
    mountpoint: String,
}

impl Page {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // A String takes everything.
        let _ = writeln!(self.text, "# HELP unionfs_rs_{name} {help}\n# TYPE unionfs_rs_{name} {kind}");
    }

    /// Writes a sample of the metric that was begun last.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let all = [("mountpoint", &*self.mountpoint)].into_iter().chain(labels.iter().copied());
        let all: Vec<_> = all.map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let _ = writeln!(self.text, "unionfs_rs_{name}{{{}}} {value}", all.join(",")); // As above.
    }
}

/// Escapes what would end the value of a label, or its line.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_hold_whatever_a_path_does() {
        assert_eq!(escaped("/a\"b\\c\nd"), r#"/a\"b\\c\nd"#);
    }
}
