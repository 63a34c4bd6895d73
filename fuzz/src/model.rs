//! The rules of marks, said once more and with nothing but names: what two layers of directories and files show together.

use std::collections::{BTreeMap, BTreeSet};

type Path = Vec<Vec<u8>>;

/// What a layer has, by path; the root is not in it.
#[derive(Debug, Default)]
pub struct Layer {
    /// Whether it is a directory.
    names: BTreeMap<Path, bool>,
    removed: BTreeSet<Path>,
    opaque: BTreeSet<Path>,
}

/// What no layer may hold.
#[derive(Debug)]
pub struct Refused;

impl Layer {
    /// Applies lines as `tar_of` makes members of them; `d` and `f` alone count.
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Refused> {
        let mut layer = Self::default();
        for line in lines {
            match line.split_first() {
                Some((kind @ (b'd' | b'f'), path)) if !path.is_empty() => layer.apply(*kind == b'd', path)?,
                _ => {}
            }
        }
        Ok(layer)
    }

    fn apply(&mut self, directory: bool, path: &[u8]) -> Result<(), Refused> {
        let mut parts: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if parts.iter().any(|part| part.len() > 255) {
            return Err(Refused);
        }
        let Some(name) = parts.pop() else {
            return if directory { Ok(()) } else { Err(Refused) };
        };
        let mark = |part: &[u8]| part.len() >= 4 && part[..4] == *b".wh.";
        if name == b".." || parts.iter().any(|part| mark(part)) {
            return Err(Refused);
        }
        let at = |layer: &mut Self| -> Result<Path, Refused> {
            let mut dir = Path::new();
            for part in &parts {
                if *part == b".." {
                    dir.pop();
                    continue;
                }
                dir.push(part.to_vec());
                if !*layer.names.entry(dir.clone()).or_insert(true) {
                    return Err(Refused);
                }
            }
            Ok(dir)
        };
        if name == b".wh..wh..opq" {
            let dir = at(self)?;
            self.opaque.insert(dir);
            return Ok(());
        }
        if mark(name) {
            let hidden = &name[4..];
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(Refused);
            }
            if !mark(hidden) {
                let mut path = at(self)?;
                path.push(hidden.to_vec());
                self.removed.insert(path);
            }
            return Ok(());
        }
        let mut path = at(self)?;
        path.push(name.to_vec());
        match (self.names.get(&path), directory) {
            (Some(true), true) => {}
            (Some(true), false) => self.names.retain(|other, _| !other.starts_with(&path)),
            _ => {}
        }
        self.names.insert(path, directory);
        Ok(())
    }

    /// Returns whether this layer keeps what those below have at `path` from being seen.
    fn hides(&self, path: &[Vec<u8>]) -> bool {
        (0..=path.len()).any(|len| {
            let at = &path[..len];
            // Something of this layer is never hidden by its own marks, only what is below it.
            let here = if len == 0 { Some(true) } else { self.names.get(at).copied() };
            let inside = len < path.len();
            // A mark counts where the directory that it stands in is, in the end, one.
            let marked =
                len > 0 && self.removed.contains(at) && (len == 1 || self.names.get(&path[..len - 1]) == Some(&true));
            match here {
                Some(false) => true,
                Some(true) => inside && (self.opaque.contains(at) || marked),
                None => marked,
            }
        })
    }
}

/// Returns what `upper` on `lower` shows: paths, and whether each is a directory.
pub fn merged(upper: &Layer, lower: &Layer) -> BTreeMap<Vec<u8>, bool> {
    let below = lower.names.iter().filter(|(path, _)| !upper.hides(path));
    // What upper itself has comes last, and over the rest.
    below.chain(&upper.names).map(|(path, directory)| (path.join(&b'/'), *directory)).collect()
}
