//! Who may have a container when.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use unionfs_rs::error::ErrorKind;

use crate::archive::{Shop, show};
use crate::support::{binary, finish};
use crate::upper::base;

#[test]
fn nobody_takes_away_what_is_being_read() {
    let shop = Shop::new();
    let container = shop.container(vec![base()]);
    std::fs::write(container.upper().join("new"), "text").unwrap();
    let path = std::path::Path::new("/new");
    let (now, was) = shop.store.stacks_of(&container).unwrap();
    for refused in [container.remove(), shop.store.discard_all(&container), shop.store.discard(&container, path)] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(
            error.to_string().contains(&container.config.id) && error.to_string().contains("being read"),
            "{error}"
        );
    }
    // Others may read it meanwhile, and mount it.
    assert!(show(&shop.store.stacks_of(&container).unwrap().0).contains_key("/new"));
    assert!(container.hold().unwrap().is_some());
    let removal = std::thread::scope(|scope| {
        let removal = scope.spawn(|| container.remove());
        drop((now, was));
        removal.join().unwrap()
    });
    removal.unwrap();
    assert_eq!(shop.store.stacks_of(&container).err().unwrap().kind(), ErrorKind::Absent);
    assert!(!container.path.exists(), "a reader that comes too late leaves nothing");
}

#[test]
fn what_cannot_be_read_is_named_with_its_layer() {
    let shop = Shop::new();
    let container = shop.container(vec![base()]);
    // What no mount has written: a redirect to nowhere that could be.
    let dir = container.upper().join("d");
    std::fs::create_dir(&dir).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let key = if rustix::process::geteuid().is_root() { "trusted.overlay.redirect" } else { "user.overlay.redirect" };
    rustix::fs::setxattr(&dir, key, b"/../etc", flags).unwrap();
    let store = shop.dir.path().join("store");
    let ran = finish(Command::new(binary()).args(["diff", &container.config.id]).arg("--store").arg(&store));
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    for part in [&container.config.id, dir.to_str().unwrap()] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
}

#[test]
fn names_that_are_no_text_are_copied_listed_and_told_apart() {
    let shop = Shop::new();
    let name = |byte: u8| OsString::from_vec([b"name-", &[byte][..]].concat());
    let container = shop.container(vec![base()]);
    for byte in [0xfe, 0xff] {
        std::fs::write(container.upper().join(name(byte)), [byte]).unwrap();
    }
    let ask = |arguments: &[&OsStr]| {
        let store = shop.dir.path().join("store");
        let ran =
            finish(Command::new(binary()).args(arguments).env("UNIONFS_RS_STORE", store).current_dir(shop.dir.path()));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.out
    };
    let id = OsStr::new(&container.config.id);
    let json: serde_json::Value = serde_json::from_str(&ask(&["diff".as_ref(), "--json".as_ref(), id])).unwrap();
    assert_eq!(json["added"], serde_json::json!(["/name-\\xfe", "/name-\\xff"]));
    let mut from = OsString::from(format!("{}:/", container.config.id));
    from.push(name(0xff));
    ask(&["cp".as_ref(), &from, &name(0x80)]);
    assert_eq!(std::fs::read(shop.dir.path().join(name(0x80))).unwrap(), [0xff]);
    assert!(ask(&["tree".as_ref(), id, &name(0xfe)]).contains("name-"));
}

#[test]
fn of_several_who_remove_mount_and_read_one_container_each_gets_it_whole_or_is_told() {
    let shop = Shop::new();
    let image = shop.image(vec![base()]).unwrap();
    for round in 0..20 {
        let container = shop.container_of(&image);
        // Removing takes a while.
        for n in 0..200 {
            std::fs::write(container.upper().join(n.to_string()), "x").unwrap();
        }
        let (removed, held, read) = std::thread::scope(|scope| {
            let removers = [0, 1].map(|_| scope.spawn(|| container.remove()));
            let holder = scope.spawn(|| {
                let held = container.held()?;
                let whole = std::fs::read_dir(container.upper()).map_or(0, Iterator::count);
                container.save()?;
                drop(held);
                Ok::<_, unionfs_rs::error::Error>(whole)
            });
            let reader = scope.spawn(|| {
                let (now, _) = shop.store.stacks_of(&container)?;
                Ok::<_, unionfs_rs::error::Error>(show(&now).len())
            });
            (removers.map(|remover| remover.join().unwrap()), holder.join().unwrap(), reader.join().unwrap())
        });
        assert_eq!(removed.iter().filter(|removed| removed.is_ok()).count(), 1, "{round}: {removed:?}");
        let told = |error: &unionfs_rs::error::Error| error.kind() == ErrorKind::Absent;
        assert!(removed.iter().all(|removed| removed.as_ref().err().is_none_or(told)), "{round}: {removed:?}");
        assert!(held.as_ref().map_or_else(told, |names| *names == 200), "{round}: {held:?}");
        assert!(read.as_ref().map_or_else(told, |names| *names > 200), "{round}: {read:?}");
        assert!(!container.path.exists(), "{round}");
    }
}
