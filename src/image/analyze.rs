//! How much of an image's layers is for nothing: what later layers replace or remove.
//!
//! Two measures. That of dive, which goes by paths: how the least that each path takes compares with all that it takes in all
//! layers. And the plain one: bytes that are stored and that the final tree does not show. Sizes are those of the tar
//! headers.

use std::collections::BTreeMap;
use std::io;

use super::digest::invalid;
use super::manifest::{Image, Layer};
use super::pipe::drain;
use super::store::{Store, read_layer};
use super::tar::read::Members;
use super::tar::{Member, MemberKind};
use super::unpack::path::{Entry, Parts, entry, joined};
use crate::error::{Error, Result};
use crate::layer::attr::FileKind;

/// What a layer has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerSum {
    /// Files, links and devices that are new.
    pub added: u64,
    /// Files, links and devices that take the place of what lower layers have.
    pub replaced: u64,
    /// Names that it removes from lower layers.
    pub removed: u64,
    /// The bytes of its regular files.
    pub bytes: u64,
}

/// A path that several layers have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    /// The path, from the root.
    pub path: Vec<u8>,
    /// In how many layers it is, marks that it is removed among them.
    pub layers: u64,
    /// The bytes that it takes in all of them.
    pub bytes: u64,
}

/// What there is to say of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Analysis {
    /// Each layer, lowest first.
    pub layers: Vec<LayerSum>,
    /// Σ over paths of the least that it takes, by Σ of all that it takes: 1 where nothing is for nothing.
    pub efficiency: f64,
    /// The bytes of paths that are in several layers, in all of them.
    pub wasted_bytes: u64,
    /// Those by the bytes of all layers above the first; 0 where there are none.
    pub wasted_user_percent: f64,
    /// The bytes of regular files that the final tree does not show.
    pub hidden_bytes: u64,
    /// The paths that are in several layers, those that take the most first.
    pub repeated: Vec<Repeated>,
}

/// What is at a path of the tree so far.
#[derive(Debug, Clone, Copy)]
struct Node {
    directory: bool,
    bytes: u64,
}

/// What one layer has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    Directory,
    File(u64),
    Whiteout,
    Opaque,
}

#[derive(Default)]
struct Seen {
    times: u64,
    least: u64,
    all: u64,
}

/// Reads the layers of an image, and counts.
pub fn analyze(store: &Store, image: &Image) -> Result<Analysis> {
    let mut analysis = Analysis { efficiency: 1.0, ..Analysis::default() };
    let mut tree: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    let mut seen: BTreeMap<Vec<u8>, Seen> = BTreeMap::new();
    let mut stored = 0_u64;
    for layer in &image.layers {
        let entries = entries(store, layer).map_err(|error| error.within(format!("layer {}", layer.blob.digest())))?;
        for (path, has) in leaves(&entries) {
            let bytes = match has {
                Has::File(bytes) => bytes,
                // Of a directory that is removed all that was in it counts.
                Has::Whiteout => tree.get(path).filter(|node| node.directory).map_or(0, |_| sum_below(&tree, path)),
                Has::Directory | Has::Opaque => 0,
            };
            let one = seen.entry(path.clone()).or_default();
            one.least = if one.times == 0 { bytes } else { one.least.min(bytes) };
            one.times += 1;
            one.all = one.all.saturating_add(bytes);
        }
        let sum = apply(&mut tree, &entries);
        stored = stored.saturating_add(sum.bytes);
        analysis.layers.push(sum);
    }
    let shown = tree.values().fold(0_u64, |sum, node| sum.saturating_add(node.bytes));
    analysis.hidden_bytes = stored.saturating_sub(shown);
    let (mut least, mut all) = (0_u64, 0_u64);
    for (path, one) in seen {
        (least, all) = (least.saturating_add(one.least), all.saturating_add(one.all));
        if one.times > 1 {
            analysis.wasted_bytes = analysis.wasted_bytes.saturating_add(one.all);
            analysis.repeated.push(Repeated { path, layers: one.times, bytes: one.all });
        }
    }
    if all > 0 {
        analysis.efficiency = least as f64 / all as f64;
    }
    let user = analysis.layers.iter().skip(1).fold(0_u64, |sum, layer| sum.saturating_add(layer.bytes));
    if user > 0 {
        analysis.wasted_user_percent = analysis.wasted_bytes as f64 / user as f64;
    }
    analysis.repeated.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    Ok(analysis)
}

/// Reads what a layer has, by path; the last of two members of one path holds.
fn entries(store: &Store, layer: &Layer) -> Result<BTreeMap<Vec<u8>, Has>> {
    let blob = store.read_blob(&layer.blob)?;
    let read = read_layer(&layer.blob, &layer.diff_id, blob, &(), |stream| {
        let mut entries = BTreeMap::new();
        let mut members = Members::new(stream);
        while let Some(member) = members.next_member()? {
            if let Some((path, has)) = has(&member)? {
                entries.insert(path, has);
            }
        }
        drain(&mut members.into_inner())?;
        Ok(entries)
    });
    read.map(|(entries, _)| entries)
}

fn has(member: &Member) -> io::Result<Option<(Vec<u8>, Has)>> {
    let named = |error: io::Error| invalid(format!("member {:?}: {error}", String::from_utf8_lossy(&member.path)));
    let plain = |parts: &Parts<'_>, name: &[u8]| joined(parts, name);
    Ok(match entry(&member.path).map_err(named)? {
        Entry::Root | Entry::Skipped => None,
        Entry::Whiteout(parts, name) => Some((plain(&parts, name), Has::Whiteout)),
        Entry::Opaque(parts) => Some((parts.join(&b'/'), Has::Opaque)),
        Entry::Name(parts, name) => {
            let has = match member.kind {
                MemberKind::File(FileKind::Directory) => Has::Directory,
                MemberKind::File(_) => Has::File(member.size),
                MemberKind::HardLink => Has::File(0),
            };
            Some((plain(&parts, name), has))
        }
    })
}

/// Returns what has nothing of this layer below it.
fn leaves(entries: &BTreeMap<Vec<u8>, Has>) -> impl Iterator<Item = (&Vec<u8>, Has)> {
    entries.iter().filter(|(path, _)| below(entries, path).next().is_none()).map(|(path, has)| (path, *has))
}

/// Returns what is below `path`.
fn below<'a, T>(tree: &'a BTreeMap<Vec<u8>, T>, path: &[u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a T)> {
    let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
    tree.range(prefix.clone()..).take_while(move |(at, _)| at.starts_with(&prefix))
}

fn sum_below(tree: &BTreeMap<Vec<u8>, Node>, path: &[u8]) -> u64 {
    below(tree, path).fold(0, |sum, (_, node)| sum.saturating_add(node.bytes))
}

/// Puts a layer on the tree: first what it removes, then what it has.
fn apply(tree: &mut BTreeMap<Vec<u8>, Node>, entries: &BTreeMap<Vec<u8>, Has>) -> LayerSum {
    let mut sum = LayerSum::default();
    for (path, has) in entries.iter().filter(|(_, has)| matches!(has, Has::Whiteout | Has::Opaque)) {
        let mut gone: Vec<Vec<u8>> = below(tree, path).map(|(at, _)| at.clone()).collect();
        if *has == Has::Whiteout {
            gone.extend(tree.contains_key(path).then(|| path.clone()));
            sum.removed += 1;
        }
        for path in gone {
            tree.remove(&path);
        }
    }
    for (path, has) in entries {
        let node = match has {
            Has::Directory => Node { directory: true, bytes: 0 },
            Has::File(bytes) => Node { directory: false, bytes: *bytes },
            Has::Whiteout | Has::Opaque => continue,
        };
        sum.bytes = sum.bytes.saturating_add(node.bytes);
        let before = tree.insert(path.clone(), node);
        if !node.directory {
            if before.is_some() {
                sum.replaced += 1
            } else {
                sum.added += 1
            }
            let gone: Vec<Vec<u8>> = below(tree, path).map(|(at, _)| at.clone()).collect();
            for path in gone {
                tree.remove(&path);
            }
        }
    }
    sum
}

impl Analysis {
    /// Says why the image is not as good as it was to be, if it is not.
    pub fn check(&self, limits: Limits) -> std::result::Result<(), Error> {
        let failed = |reason: String| Err(Error::image("analyze", reason));
        if let Some(lowest) = limits.lowest_efficiency.filter(|lowest| self.efficiency < *lowest) {
            return failed(format!("the efficiency is {:.4}, and was to be {lowest} at least", self.efficiency));
        }
        if let Some(most) = limits.highest_wasted_bytes.filter(|most| self.wasted_bytes > *most) {
            return failed(format!("{} bytes are wasted, and were to be {most} at most", self.wasted_bytes));
        }
        if let Some(most) = limits.highest_user_wasted_percent.filter(|most| self.wasted_user_percent > *most) {
            return failed(format!(
                "{:.4} of what is above the first layer is wasted, and was to be {most} at most",
                self.wasted_user_percent
            ));
        }
        Ok(())
    }
}

/// What an image is to keep to, in the words of dive.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// The lowest efficiency, 0 to 1.
    pub lowest_efficiency: Option<f64>,
    /// The most bytes that may be wasted.
    pub highest_wasted_bytes: Option<u64>,
    /// The most that may be wasted of what is above the first layer, 0 to 1.
    pub highest_user_wasted_percent: Option<f64>,
}
