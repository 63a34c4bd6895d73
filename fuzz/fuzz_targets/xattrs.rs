//! Any bytes are the value of an overlay xattr or no such value, and one that was read is the same when it is read again as it
//! is written; any name of an xattr is stored so that it means nothing to the overlay and is shown as it was set:
//! `cargo fuzz run xattrs`.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use unionfs_rs::layer::acl::{Acl, inherit};
use unionfs_rs::layer::origin::Origin;
use unionfs_rs::layer::overlay::{View, stored, view};
use unionfs_rs::layer::override_stat::OverrideStat;
use unionfs_rs::layer::redirect::Redirect;

fuzz_target!(|value: &[u8]| {
    if let Some(origin) = Origin::decode(value) {
        let again = origin.encode().expect("what was read has room");
        assert_eq!(Origin::decode(&again), Some(origin.clone()));
        let _number = origin.inode_number();
        if let Some(name) = origin.index_name() {
            assert!(name.len() <= 255 && name.as_bytes().iter().all(u8::is_ascii_hexdigit), "{name:?}");
        }
    }
    if let Ok(redirect) = Redirect::parse(value) {
        assert_eq!(redirect.to_bytes(), value);
        let parts = match redirect {
            Redirect::Sibling(name) => vec![name],
            Redirect::Absolute(parts) => parts,
        };
        for part in parts {
            let part = part.as_bytes();
            assert!(
                !matches!(part, b"" | b"." | b"..") && part.len() <= 255 && !part.iter().any(|b| b"/\0".contains(b))
            );
        }
    }
    if let Ok(stat) = OverrideStat::parse(value) {
        assert!(stat.mode <= 0o7777 && stat.uid != u32::MAX && stat.gid != u32::MAX);
        assert_eq!(OverrideStat::parse(&stat.to_bytes()).expect("what was written can be read"), stat);
    }
    if let Ok(mut acl) = Acl::parse(value) {
        let bytes = acl.to_bytes();
        assert_eq!(Acl::parse(&bytes).expect("what was written can be read").to_bytes(), bytes);
        if acl.set_mode(0o640).is_ok() {
            // One without entries for everybody says less.
            assert_eq!(acl.mode().expect("its entries are of known kinds") & !0o640, 0);
        }
        acl.show_ids(|id| (id & 1 == 0).then_some(id / 2), |_| None);
        Acl::parse(&acl.to_bytes()).expect("what was written can be read");
    }
    for mode in [0, 0o777, 0o2711] {
        let _inherited = inherit(value, mode); // That it returns is all that is asked.
    }
    let name = OsStr::from_bytes(value);
    let stored = stored(name);
    let shown = match view(&stored) {
        View::Same => stored.clone(),
        View::Unescaped(name) => name,
        View::Hidden => panic!("{stored:?} would mean something"),
    };
    assert_eq!(shown, name);
});
