//! Metacopies whose data is said to be elsewhere: it is in a regular file of a layer below, or nowhere.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;

use super::stage::{Outside, is_from_outside};
use crate::support::{Layers, LowersUnchanged, Mounted, Tree, Watchdog, modes};
use crate::union::{errno, is_ours};

fn metacopy(tree: &Tree, name: &str, redirect: Option<&str>) {
    tree.sparse(name, 4).overlay_xattr(name, "metacopy", "");
    if let Some(redirect) = redirect {
        tree.overlay_xattr(name, "redirect", redirect);
    }
}

/// Where the data is said to be, by the name of the metacopy.
fn leads(layers: &Layers) -> Vec<(&'static str, String)> {
    vec![
        ("outside", layers.path("outside/secret").display().to_string()),
        ("up", "/../outside/secret".into()),
        ("beside", "../outside/secret".into()),
        ("by-link", "/out/secret".into()),
        ("link", "/link".into()),
        ("directory", "/dir".into()),
        ("pipe", "/pipe".into()),
        ("device", "/null".into()),
        ("socket", "/socket".into()),
        ("itself", "/itself".into()),
        ("itself-beside", "itself-beside".into()),
        ("circle", "/circle-back".into()),
        ("removed", "/removed".into()),
        ("missing", "/missing".into()),
        ("empty", String::new()),
        ("long", format!("/{}", "a/".repeat(900) + "f")),
    ]
}

#[test]
fn a_metacopy_that_leads_to_anything_but_a_file_of_a_layer_below_is_eio_and_opens_nothing() {
    if !is_ours("it answers otherwise, and needs root for all of it") {
        return;
    }
    for mode in modes() {
        for place in ["lower", "upper"] {
            eprintln!("--- {mode:?}, in the {place}");
            let _watchdog = Watchdog::start();
            let layers = Layers::new(3, mode.placement);
            let outside = Outside::new(&layers);
            let below = layers.lower(1);
            below.symlink("out", layers.path("outside")).symlink("link", layers.path("outside/secret")).dir("dir");
            below.fifo("pipe").whiteout("removed").file("good", "data").fifo("socket");
            below.file("f", "data");
            layers.lower(2).file("removed", "removed").file("pipe", "hidden by the pipe").file("out/secret", "hidden");
            // Where the one who runs the tests may make none, a pipe stands for it.
            let null = rustix::fs::makedev(1, 3);
            let device = rustix::fs::mknodat(
                rustix::fs::CWD,
                below.path("null"),
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::from(0o666),
                null,
            );
            if device.is_err() {
                below.fifo("null");
            }
            let tree = if place == "lower" { layers.lower(0) } else { layers.upper() };
            for (name, redirect) in leads(&layers) {
                metacopy(&tree, name, Some(&redirect));
            }
            metacopy(&tree, "circle-back", Some("/circle"));
            metacopy(&tree, "orphan", None);
            metacopy(&tree, "whole", Some("/good"));
            let lowers = LowersUnchanged::new(layers.lowers());
            let mut mount = layers.spec(mode.io).feature("metacopy", "on").mount_ours();
            let merged = mount.tree();
            assert_eq!(merged.read("whole"), b"data");
            for name in leads(&layers).iter().map(|(name, _)| *name).chain(["circle-back", "orphan"]) {
                let read = fs::read(merged.path(name));
                assert!(!read.as_ref().is_ok_and(|data| is_from_outside(data)), "{name}");
                assert_eq!(errno(read), Errno::IO, "{name}");
                let written = fs::OpenOptions::new().append(true).open(merged.path(name)).and_then(|mut file| {
                    std::io::Write::write_all(&mut file, b"x")?;
                    file.sync_all()
                });
                assert_eq!(errno(written), Errno::IO, "{name}");
                // What it is can be seen, and it can be replaced and removed.
                assert_eq!(merged.stat(name).size(), 4, "{name}");
                fs::remove_file(merged.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            assert_eq!(merged.read("whole"), b"data");
            mount.unmount().expect("the union can be unmounted");
            lowers.check();
            outside.check();
        }
    }
}
