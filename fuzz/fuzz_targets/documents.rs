//! Any bytes are a manifest, a configuration or an index, or an error; and one that was read is the same when it is read again
//! as it is written: `cargo fuzz run documents`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::image::{Descriptor, Digest, MediaType};
use unionfs_rs::image::history;
use unionfs_rs::image::manifest::{Image, Platform, is_attachment, manifest_type, parse_manifest, select};
use unionfs_rs::image::source::parse_index;

// A configuration may follow after a zero byte, which JSON does not have.
fuzz_target!(|bytes: &[u8]| {
    let mut documents = bytes.splitn(2, |byte| *byte == 0);
    let (first, config) = (documents.next().unwrap_or_default(), documents.next().unwrap_or_default());
    let _ = manifest_type(first); // That it returns is all that is asked.
    if let Ok(index) = parse_index(first) {
        let text = serde_json::to_vec(&index).expect("what was read can be written");
        assert_eq!(parse_index(&text).expect("what was written can be read"), index);
        for platform in ["linux/amd64", "linux/arm64/v8", "windows/amd64"] {
            let platform = Platform::parse(platform).expect("it is one");
            if let Ok(entry) = select(&index, &platform) {
                assert!(index.manifests().contains(entry) && !is_attachment(entry));
            }
        }
    }
    let Ok(manifest) = parse_manifest(first) else { return };
    let text = serde_json::to_vec(&manifest).expect("what was read can be written");
    assert_eq!(parse_manifest(&text).expect("what was written can be read"), manifest);
    let digest = Digest::try_from(format!("sha256:{}", "0".repeat(64))).expect("it is one");
    let descriptor = Descriptor::new(MediaType::ImageManifest, first.len() as u64, digest);
    if let Ok(image) = Image::new(descriptor, first.to_vec(), config.to_vec()) {
        assert_eq!(image.layers.len(), manifest.layers().len());
        let entries = history::entries(&image);
        let mut layers: Vec<usize> = entries.iter().filter_map(|entry| entry.layer).collect();
        layers.reverse();
        assert!(layers.iter().copied().eq(0..layers.len()) && layers.len() <= image.layers.len());
    }
});
