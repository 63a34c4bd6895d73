//! The status for programs; docs/RELIABILITY.md describes it.

use serde_json::{Map, Value, json};

use super::Shown;
use crate::union::Hits;

/// Counted up when a field changes its meaning or goes; one that comes is no change.
const VERSION: u32 = 1;

/// Writes `shown` as one object and a line break.
pub fn write(shown: &Shown) -> String {
    let status = &shown.status;
    let statistics = &status.statistics;
    let layers: Vec<Value> = status
        .layers
        .iter()
        .map(|layer| {
            let path = layer.path.to_string_lossy();
            json!({ "role": layer.role.name(), "path": path, "private": layer.private })
        })
        .collect();
    let options: Map<String, Value> = status
        .in_force
        .iter()
        .map(|option| (option.option.to_owned(), json!({ "value": option.value, "why": option.why })))
        .collect();
    let requests: Map<String, Value> =
        statistics.requests.iter().map(|(operation, count)| (operation.name().to_owned(), count.into())).collect();
    let caches = statistics.caches;
    let value = json!({
        "format": VERSION,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "mountpoint": shown.mountpoint.to_string_lossy(),
        "device": shown.device(),
        "uptime_seconds": status.age.as_secs_f64(),
        "layers": layers,
        "options": options,
        "inodes": statistics.usage.inodes,
        "descriptors": {
            "directories": statistics.usage.directories,
            "files": statistics.usage.files,
            "handles": statistics.usage.handles,
            "kept_at_most": statistics.usage.kept_at_most,
        },
        "copy_ups": {
            "objects": statistics.copy_ups.objects,
            "bytes": statistics.copy_ups.bytes,
            "seconds": statistics.copy_ups.time.as_secs_f64(),
        },
        "requests": { "total": statistics.requests.total(), "by_operation": requests },
        "caches": {
            "upper_directories": hits(caches.upper_directories),
            "lower_directories": hits(caches.lower_directories),
            "files": hits(caches.files),
            "names": hits(caches.names),
        },
        "absences": statistics.absences,
        "quota": statistics.quota.map(|quota| json!({
            "bytes": { "used": quota.used.bytes, "limit": quota.limits.bytes },
            "inodes": { "used": quota.used.inodes, "limit": quota.limits.inodes },
        })),
    });
    format!("{value:#}\n")
}

fn hits(hits: Hits) -> Value {
    json!({ "hits": hits.hits, "misses": hits.misses })
}
