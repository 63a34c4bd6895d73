//! How an image came to be, as its configuration tells it.

use super::manifest::Image;

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// When, as the configuration writes it.
    pub created: Option<String>,
    /// By what command.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// Why.
    pub comment: Option<String>,
    /// The layer that it made, counted from the lowest; `None` for a step that made none.
    pub layer: Option<usize>,
}

/// Returns the steps, newest first. Layers that the history says nothing of are the oldest.
pub fn entries(image: &Image) -> Vec<Entry> {
    let history = image.config.history.as_deref().unwrap_or_default();
    let told = history.iter().filter(|step| step.empty_layer != Some(true)).count();
    let untold = image.layers.len().saturating_sub(told);
    let mut entries: Vec<Entry> = (0..untold).map(|at| Entry { layer: Some(at), ..Entry::default() }).collect();
    let mut next = untold;
    for step in history {
        let made = step.empty_layer != Some(true) && next < image.layers.len();
        entries.push(Entry {
            created: step.created.clone(),
            created_by: step.created_by.clone(),
            author: step.author.clone(),
            comment: step.comment.clone(),
            layer: made.then_some(next),
        });
        next += usize::from(made);
    }
    entries.reverse();
    entries
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, Digest, MediaType};

    use super::*;

    fn image(layers: usize, history: &str) -> Image {
        let digest = |n: usize| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let blobs: Vec<String> = (0..layers)
            .map(|n| {
                format!(
                    "{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"size\":1,\"digest\":\"{}\"}}",
                    digest(n)
                )
            })
            .collect();
        let diff_ids: Vec<String> = (0..layers).map(|n| format!("\"{}\"", digest(n))).collect();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"size\":1,\"digest\":\"{}\"}},\"layers\":[{}]}}",
            digest(99),
            blobs.join(",")
        );
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}{history}}}",
            diff_ids.join(",")
        );
        let descriptor = Descriptor::new(MediaType::ImageManifest, 1, Digest::try_from(digest(98)).unwrap());
        Image::new(descriptor, manifest.into_bytes(), config.into_bytes()).unwrap()
    }

    fn layers(image: &Image) -> Vec<Option<usize>> {
        entries(image).iter().map(|entry| entry.layer).collect()
    }

    #[test]
    fn steps_without_a_layer_use_up_none() {
        let history =
            ",\"history\":[{\"created_by\":\"a\"},{\"created_by\":\"b\",\"empty_layer\":true},{\"created_by\":\"c\"}]";
        let image = image(2, history);
        assert_eq!(layers(&image), [Some(1), None, Some(0)]);
        assert_eq!(entries(&image)[0].created_by.as_deref(), Some("c"));
    }

    #[test]
    fn a_history_may_be_missing_or_short_or_too_long() {
        assert_eq!(layers(&image(2, "")), [Some(1), Some(0)]);
        assert_eq!(layers(&image(3, ",\"history\":[{\"created_by\":\"top\"}]")), [Some(2), Some(1), Some(0)]);
        assert_eq!(layers(&image(1, ",\"history\":[{},{}]")), [None, Some(0)]);
    }
}
