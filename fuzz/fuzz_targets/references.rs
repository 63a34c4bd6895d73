//! Any text is the name of an image, a platform or a digest, or an error; and one that was read is the same when it is read
//! again as it is written: `cargo fuzz run references`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::image::Digest;
use unionfs_rs::image::manifest::Platform;
use unionfs_rs::image::reference::ImageName;

fuzz_target!(|text: &str| {
    if let Ok(name) = ImageName::parse(text) {
        let again = ImageName::parse(&name.to_string()).expect("a name that is whole is one");
        assert_eq!(name, again);
        assert_eq!(name.to_string(), again.to_string());
        assert!(!name.registry().is_empty() && !name.repository().is_empty());
        assert!(name.to_string().starts_with(&name.base()));
        assert!(name.tag().is_some() || name.digest().is_some());
        let candidates = ImageName::candidates(text).expect("it is a name");
        assert_eq!(candidates.last(), Some(&name));
        if let Ok(tagged) = name.tagged() {
            assert!(tagged.tag().is_some() && tagged.digest().is_none());
        }
    }
    if let Ok(platform) = Platform::parse(text) {
        assert_eq!(Platform::parse(&platform.to_string()).expect("it is one"), platform);
    }
    if let Ok(digest) = Digest::try_from(text) {
        // It becomes a path in the store.
        let fits = |part: &str| !part.is_empty() && !part.contains(['/', '\0']) && !matches!(part, "." | "..");
        assert!(fits(digest.algorithm().as_ref()) && fits(digest.digest()), "{digest}");
    }
});
