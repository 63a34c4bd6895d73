//! The text for Prometheus, read by a parser of that format.

use std::collections::BTreeMap;
use std::fs;

use crate::skip;
use crate::status::asking::{json, status};
use crate::support::{Io, Layers, Mounted, Placement, no_mounts, on_kernel};

/// Samples by name and labels.
type Samples = BTreeMap<(String, Vec<(String, String)>), f64>;

fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Reads the labels after `{`; returns them, and what follows `}`.
fn labels(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut labels = Vec::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return (labels, rest);
        }
        let (name, rest) = text.split_once("=\"").unwrap_or_else(|| panic!("no label: {text}"));
        assert!(is_name(name), "{name}");
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("no end: {rest}")) {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    other => panic!("no such escape: {other:?}"),
                }),
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
}

/// Reads a page; panics with what is wrong with it.
fn parse(page: &str) -> Samples {
    assert!(page.ends_with('\n'));
    let (mut kinds, mut helped, mut samples) = (BTreeMap::new(), None, Samples::new());
    let mut current = String::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').map(|(name, _)| name.to_owned());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(["counter", "gauge"].contains(&kind) && helped.as_deref() == Some(name), "{line}");
            assert!(kinds.insert(name.to_owned(), kind).is_none(), "a second time: {line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            current = name.to_owned();
        } else {
            let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(name) && name == current, "{line}");
            let (labels, value) = labels(rest);
            let value =
                value.strip_prefix(' ').and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{line}"));
            assert!(samples.insert((name.to_owned(), labels), value).is_none(), "a second time: {line}");
        }
    }
    samples
}

#[test]
fn the_text_for_prometheus_is_valid_and_says_what_json_says() {
    if on_kernel() {
        skip!("the kernel's overlayfs has no daemon to ask");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", vec![7; 5000]);
    let at = layers.path("a \"quoted\\ mountpoint");
    fs::create_dir(&at).expect("it is ours");
    let mount = layers.spec(Io::Cached).at(&at).mount_ours();
    fs::OpenOptions::new()
        .append(true)
        .open(at.join("f"))
        .and_then(|mut f| std::io::Write::write_all(&mut f, b"x"))
        .expect("a write");
    let seen = json(mount.path());
    let ran = status(&at, &["--prometheus"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let samples = parse(&ran.out);
    let here = ("mountpoint".to_owned(), at.to_str().expect("text").to_owned());
    assert!(samples.keys().all(|(_, labels)| labels.first() == Some(&here)), "{}", ran.out);
    let value = |name: &str, label: Option<(&str, &str)>| {
        let label = label.map(|(label, value)| (label.to_owned(), value.to_owned()));
        let labels = [here.clone()].into_iter().chain(label).collect();
        let key = (format!("unionfs_rs_{name}"), labels);
        samples.get(&key).copied().unwrap_or_else(|| panic!("{key:?} is not in\n{}", ran.out))
    };
    assert_eq!(Some(value("copy_up_bytes_total", None)), seen["copy_ups"]["bytes"].as_f64());
    assert_eq!(value("copy_up_bytes_total", None), 5000.0);
    assert_eq!(value("copy_ups_total", None), 1.0);
    assert_eq!(Some(value("inodes", None)), seen["inodes"].as_f64());
    for (operation, count) in seen["requests"]["by_operation"].as_object().expect("an object") {
        assert!(
            value("requests_total", Some(("operation", operation))) >= count.as_f64().expect("a number"),
            "{operation}"
        );
    }
    let infos = samples.keys().filter(|(name, _)| name == "unionfs_rs_option_info").count();
    assert_eq!(infos, seen["options"].as_object().expect("an object").len());
    assert_eq!(samples.keys().filter(|(name, _)| name == "unionfs_rs_layer_info").count(), 3);
}
