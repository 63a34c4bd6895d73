//! Any text is a name, a platform, a manifest, a configuration or an index, or an error: `cargo fuzz run documents`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::image::{Descriptor, Digest, MediaType};
use unionfs_rs::image::history;
use unionfs_rs::image::manifest::{Image, Platform, manifest_type, parse_manifest, select};
use unionfs_rs::image::reference::ImageName;
use unionfs_rs::image::source::parse_index;

// The first byte says where the manifest ends and the configuration begins.
fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (ImageName::parse(text), ImageName::candidates(text), Platform::parse(text));
    }
    let _ = (manifest_type(bytes), parse_manifest(bytes));
    if let Ok(index) = parse_index(bytes) {
        let _ = select(&index, &Platform::here());
    }
    let Some((at, rest)) = bytes.split_first() else { return };
    let (manifest, config) = rest.split_at(rest.len() * usize::from(*at) / 255);
    let digest = Digest::try_from(format!("sha256:{}", "0".repeat(64))).expect("it is one");
    let descriptor = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, digest);
    if let Ok(image) = Image::new(descriptor, manifest.to_vec(), config.to_vec()) {
        let _ = history::entries(&image);
    }
});
