//! Layers written by others: by the kernel's overlayfs, by fuse-overlayfs, and by nobody in their senses.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::union::{Union, errno, is_ours, trap};
use crate::support::{Layers, LowersUnchanged, Mounted, Privilege, Tree, Watchdog, modes, on_kernel, privilege};

/// The namespaces in which opaque directories and whiteouts are read, as far as this process may write them.
fn readable_namespaces() -> &'static [&'static str] {
    const ALL: [&str; 3] = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];
    if privilege() == Privilege::Root { &ALL } else { &ALL[1..] }
}

/// The bottom of the tests here: a directory with entries, and a file.
fn bottom(tree: &Tree) {
    tree.file("d/a", "a").file("d/b", "b").file("d/sub/deep", "deep").file("f", "lower").file("g", "lower");
}

/// Marks the topmost lower, and in another run the upper, and expects the same of both.
fn in_lower_and_in_upper(mark: impl Fn(&Tree), expect: impl Fn(&Union)) {
    for place in ["lower", "upper"] {
        trap(2, |layers| {
            bottom(&layers.lower(1));
            mark(&if place == "lower" { layers.lower(0) } else { layers.upper() });
        })
        .run(|union| {
            eprintln!("--- marks in the {place}");
            union.live_and_after_remount(&expect);
        });
    }
}

#[test]
fn a_char_whiteout_hides_the_name() {
    in_lower_and_in_upper(
        |tree| {
            tree.whiteout("f").whiteout("d/a").whiteout("d/sub").whiteout("nothing-below");
        },
        |union| {
            assert_eq!(union.merged().names(""), ["d", "g"]);
            assert_eq!(union.merged().names("d"), ["b"]);
            for name in ["f", "d/a", "d/sub", "d/sub/deep", "nothing-below"] {
                assert!(!union.merged().exists(name), "{name}");
            }
        },
    );
}

#[test]
fn an_xattr_whiteout_hides_the_name_in_a_directory_marked_for_them() {
    let prefixes: &[&str] = match (on_kernel(), privilege()) {
        (true, _) => &["trusted.overlay."],
        (false, Privilege::Root) => &["trusted.overlay.", "user.overlay."],
        (false, _) => &["user.overlay."],
    };
    for prefix in prefixes {
        eprintln!("--- {prefix}");
        // The kernel's overlayfs reads them in lowers alone (overlayfs.rst, "xattr whiteouts").
        trap(2, |layers| {
            bottom(&layers.lower(1));
            let top = layers.lower(0);
            top.dir("d").xattr("d", &format!("{prefix}opaque"), "x");
            top.file("d/a", "").xattr("d/a", &format!("{prefix}whiteout"), "y");
            top.file("d/sub", "").xattr("d/sub", &format!("{prefix}whiteout"), "y");
            top.file("d/empty", "");
        })
        .run(|union| {
            union.live_and_after_remount(|union| {
                assert_eq!(union.merged().names("d"), ["b", "empty"]);
                assert!(!union.merged().exists("d/a") && !union.merged().exists("d/sub/deep"));
                assert_eq!(union.merged().read("d/b"), b"b");
            });
            // `x` is no opacity.
            fs::write(union.at("d/a"), "new").expect("a hidden name is free");
            union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), ["a", "b", "empty"]));
        });
    }
}

#[test]
fn a_dot_wh_file_hides_the_name_and_is_not_seen() {
    if !is_ours("`.wh.` names are fuse-overlayfs's and the images'") {
        return;
    }
    in_lower_and_in_upper(
        |tree| {
            tree.file(".wh.f", "").file("d/.wh.a", "").file("d/.wh.sub", "").file(".wh.nothing-below", "");
        },
        |union| {
            assert_eq!(union.merged().names(""), ["d", "g"]);
            assert_eq!(union.merged().names("d"), ["b"]);
            for name in ["f", "d/a", "d/sub/deep", ".wh.f", "d/.wh.a", ".wh.nothing-below"] {
                assert!(!union.merged().exists(name), "{name}");
            }
        },
    );
}

#[test]
fn a_dot_wh_file_hides_lower_layers_and_not_its_neighbour() {
    if !is_ours("`.wh.` names are fuse-overlayfs's and the images'") {
        return;
    }
    in_lower_and_in_upper(
        |tree| {
            // As a layer unpacked by others may have it: removed and made again.
            tree.file(".wh.f", "").file("f", "new").file(".wh.d", "").file("d/new", "new");
        },
        |union| {
            assert_eq!(union.merged().names(""), ["d", "f", "g"]);
            assert_eq!(union.merged().read("f"), b"new");
            assert_eq!(union.merged().names("d"), ["new"]);
        },
    );
}

#[test]
fn a_dot_wh_opq_file_makes_its_directory_opaque() {
    if !is_ours("`.wh..wh..opq` is fuse-overlayfs's and the images'") {
        return;
    }
    in_lower_and_in_upper(
        |tree| {
            tree.file("d/.wh..wh..opq", "").file("d/new", "new");
        },
        |union| {
            assert_eq!(union.merged().names("d"), ["new"]);
            assert!(!union.merged().exists("d/a") && !union.merged().exists("d/.wh..wh..opq"));
        },
    );
}

#[test]
fn the_opaque_xattr_is_read_in_every_namespace() {
    let prefixes = if on_kernel() { &["trusted.overlay."] } else { readable_namespaces() };
    for prefix in prefixes {
        eprintln!("--- {prefix}");
        in_lower_and_in_upper(
            |tree| {
                tree.file("d/new", "new").xattr("d", &format!("{prefix}opaque"), "y");
            },
            |union| {
                assert_eq!(union.merged().names("d"), ["new"]);
                assert!(!union.merged().exists("d/a"));
                assert_eq!(union.merged().xattr_names("d"), Vec::<String>::new());
            },
        );
    }
}

#[test]
fn an_opaque_root_hides_everything_below() {
    if !is_ours("it does not look at the roots of layers, where images may have the mark") {
        return;
    }
    in_lower_and_in_upper(
        |tree| {
            tree.file("only", "only").overlay_xattr("", "opaque", "y");
        },
        |union| assert_eq!(union.merged().names(""), ["only"]),
    );
}

#[test]
fn a_redirect_relative_to_its_directory_is_followed() {
    in_lower_and_in_upper(
        |tree| {
            // What `mv d/sub d/moved; mv d else` leaves.
            tree.whiteout("d").dir("else").overlay_xattr("else", "redirect", "d");
            tree.whiteout("else/sub").dir("else/moved").overlay_xattr("else/moved", "redirect", "sub");
            tree.file("else/moved/new", "new");
        },
        |union| {
            assert_eq!(union.merged().names(""), ["else", "f", "g"]);
            assert_eq!(union.merged().names("else"), ["a", "b", "moved"]);
            assert_eq!(union.merged().names("else/moved"), ["deep", "new"]);
            assert_eq!(union.merged().read("else/moved/deep"), b"deep");
            assert_eq!(union.merged().xattr_names("else"), Vec::<String>::new());
        },
    );
}

#[test]
fn a_redirect_from_the_root_is_followed() {
    in_lower_and_in_upper(
        |tree| {
            // What `mv d/sub far/away` leaves.
            tree.whiteout("d/sub").dir("far/away").overlay_xattr("far/away", "redirect", "/d/sub");
            tree.file("far/away/new", "new");
        },
        |union| {
            assert_eq!(union.merged().names("d"), ["a", "b"]);
            assert_eq!(union.merged().names("far/away"), ["deep", "new"]);
            assert_eq!(union.merged().read("far/away/deep"), b"deep");
            assert_eq!(union.merged().xattr_names("far/away"), Vec::<String>::new());
        },
    );
}

#[test]
fn a_redirect_through_an_opaque_directory_goes_on_where_one_in_it_leads() {
    trap(2, |layers| {
        layers.lower(1).file("d/f", "file").file("o/sub/hidden", "");
        let middle = layers.lower(0);
        middle.whiteout("d").dir("o").opaque("o").dir("o/moved").overlay_xattr("o/moved", "redirect", "/d");
        middle.dir("o/sub");
        let upper = layers.upper();
        upper
            .dir("far")
            .overlay_xattr("far", "redirect", "/o/moved")
            .dir("near")
            .overlay_xattr("near", "redirect", "/o/sub");
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("far"), ["f"]);
            assert_eq!(union.merged().read("far/f"), b"file");
            assert_eq!(union.merged().names("near"), Vec::<String>::new(), "what is opaque stays so");
        });
    });
}

#[test]
fn redirects_of_several_layers_add_up() {
    trap(3, |layers| {
        bottom(&layers.lower(2));
        // Each layer knows the directory by another name.
        layers.lower(1).whiteout("d").file("one/one", "one").overlay_xattr("one", "redirect", "d");
        layers.lower(0).whiteout("one").file("two/two", "two").overlay_xattr("two", "redirect", "/one");
        layers.upper().whiteout("two").file("three/three", "three").overlay_xattr("three", "redirect", "two");
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["f", "g", "three"]);
            assert_eq!(union.merged().names("three"), ["a", "b", "one", "sub", "three", "two"]);
            assert_eq!(union.merged().read("three/sub/deep"), b"deep");
        });
        fs::rename(union.at("three"), union.at("four")).expect("it can be moved once more");
        union.live_and_after_remount(|union| assert_eq!(union.merged().read("four/sub/deep"), b"deep"));
    });
}

#[test]
fn a_metacopy_in_the_upper_has_the_data_of_the_lower_where_metacopies_are_followed() {
    trap(2, |layers| {
        bottom(&layers.lower(1));
        metacopy(&layers.lower(0), "g", "");
        metacopy(&layers.upper(), "moved", "/f");
        layers.upper().whiteout("f");
    })
    .mounted(|spec| spec.feature("metacopy", "on"))
    .run(|union| {
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["d", "g", "moved"]);
            for name in ["moved", "g"] {
                assert_eq!(union.merged().read(name), b"lower", "{name}");
                assert_eq!(union.merged().mode(name), 0o600, "{name}");
                assert_eq!(union.merged().stat(name).len(), 5, "{name}");
            }
        });
        for name in ["moved", "g"] {
            use std::io::Write;
            let file = fs::OpenOptions::new().append(true).open(union.at(name));
            file.and_then(|mut file| file.write_all(b"+")).expect("a metacopy can be written");
        }
        union.live_and_after_remount(|union| {
            for name in ["moved", "g"] {
                assert_eq!(union.merged().read(name), b"lower+", "{name}");
                assert_eq!(union.upper().read(name), b"lower+", "{name}");
            }
        });
    });
}

/// Makes a file that has the metadata alone: mode 0600, five bytes of hole, and where the data is.
fn metacopy(tree: &Tree, name: &str, redirect: &str) {
    tree.sparse(name, 5).overlay_xattr(name, "metacopy", "");
    if !redirect.is_empty() {
        tree.overlay_xattr(name, "redirect", redirect);
    }
    fs::set_permissions(tree.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("an own file");
}

#[test]
fn a_metadata_change_under_metacopy_copies_no_data_and_the_next_write_does() {
    trap(1, |layers| {
        layers.lower(0).file("f", vec![b'l'; 1 << 20]).file("gone", vec![b'l'; 1 << 20]);
    })
    .mounted(|spec| spec.feature("metacopy", "on"))
    .run(|union| {
        use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
        let mode = fs::Permissions::from_mode(0o600);
        for name in ["f", "gone"] {
            fs::set_permissions(union.at(name), mode.clone()).expect("an own file's mode can be set");
        }
        fs::rename(union.at("f"), union.at("moved")).expect("a metacopy can be moved");
        union.live_and_after_remount(|union| {
            let stat = union.upper().stat("moved");
            assert!(stat.blocks() * 512 < 64 << 10, "{} blocks are used", stat.blocks());
            assert!(union.upper().get_overlay_xattr("moved", "metacopy").is_some());
            assert!(union.merged().read("moved") == vec![b'l'; 1 << 20]);
            assert_eq!(union.merged().mode("moved"), 0o600);
            assert_eq!(union.merged().stat("moved").blocks(), union.layers.lower(0).stat("f").blocks());
        });
        fs::remove_file(union.at("gone")).expect("a metacopy can be removed");
        let file = fs::OpenOptions::new().write(true).open(union.at("moved")).expect("the file is there");
        file.write_all_at(b"upper", 10).expect("the file can be written");
        drop(file);
        union.live_and_after_remount(|union| {
            let mut expected = vec![b'l'; 1 << 20];
            expected[10..15].copy_from_slice(b"upper");
            assert!(union.merged().read("moved") == expected && union.upper().read("moved") == expected);
            assert!(union.upper().get_overlay_xattr("moved", "metacopy").is_none());
            assert_eq!(union.merged().names(""), ["moved"]);
        });
    });
}

/// Mounts a corrupt layer and asserts that `name` answers EIO, that a line of the log names it, and
/// that everything else works.
fn is_eio_and_logged(mark: impl Fn(&Tree), name: &str, option: &str) {
    for mode in modes() {
        for place in ["lower", "upper"] {
            if on_kernel() {
                // It answers EIO to some of these and ignores others.
                return;
            }
            eprintln!("--- {mode:?}, marks in the {place}");
            let _watchdog = Watchdog::start();
            let layers = Layers::new(2, mode.placement);
            bottom(&layers.lower(1));
            mark(&if place == "lower" { layers.lower(0) } else { layers.upper() });
            let lowers = LowersUnchanged::new(layers.lowers());
            let mut mount = layers.spec(mode.io).mount_ours();
            let tree = mount.tree();
            assert!(
                touch_all(&tree.path(name)).contains(&Errno::IO),
                "{name} answers {:?}",
                touch_all(&tree.path(name))
            );
            let log = mount.log();
            let line = log.lines().find(|line| line.contains(name));
            let line = line.unwrap_or_else(|| panic!("no line of the log names {name}:\n{log}"));
            assert!(line.contains(option), "the line does not name {option}: {line}");
            assert!(!log.contains("panicked"), "{log}");
            // The rest works, and so does the mount.
            assert_eq!(tree.read("g"), b"lower");
            tree.file("d/a", "changed").file("new", "new");
            assert_eq!(tree.names("d"), ["a", "b", "sub"]);
            fs::read_dir(mount.path()).expect("the root can be listed").for_each(drop);
            mount.unmount().expect("the union can be unmounted");
            lowers.check();
        }
    }
}

/// Returns the errors of every way to use the content of a file or directory.
fn touch_all(path: &Path) -> Vec<Errno> {
    let mut errors = Vec::new();
    match fs::metadata(path) {
        Err(error) => errors.push(errno::<()>(Err(error))),
        Ok(meta) if meta.is_dir() => {
            match fs::read_dir(path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()) {
                Err(error) => errors.push(errno::<()>(Err(error))),
                Ok(_) => errors.extend(fs::metadata(path.join("deep")).err().map(|error| errno::<()>(Err(error)))),
            }
        }
        Ok(_) => errors.extend(fs::read(path).err().map(|error| errno::<()>(Err(error)))),
    }
    errors
}

#[test]
fn a_redirect_that_is_garbage_is_eio_for_that_entry() {
    for garbage in ["", "/", "a/b", "/d//sub", "/d/sub/"] {
        eprintln!("--- {garbage:?}");
        let mark = |tree: &Tree| {
            tree.dir("bad").overlay_xattr("bad", "redirect", garbage);
        };
        is_eio_and_logged(mark, "bad", "redirect");
    }
}

#[test]
fn a_redirect_that_leaves_the_layer_is_eio_for_that_entry() {
    for escape in ["..", "/..", "/../upper", "/d/../../upper", "."] {
        eprintln!("--- {escape:?}");
        let mark = |tree: &Tree| {
            tree.dir("bad").overlay_xattr("bad", "redirect", escape);
        };
        is_eio_and_logged(mark, "bad", "redirect");
    }
}

#[test]
fn redirects_that_point_at_each_other_or_at_their_parent_make_no_endless_tree() {
    trap(3, |layers| {
        bottom(&layers.lower(2));
        layers.lower(2).file("one/in-one", "one").file("two/in-two", "two");
        for index in [0, 1] {
            let tree = layers.lower(index);
            tree.dir("one")
                .overlay_xattr("one", "redirect", "/two")
                .dir("two")
                .overlay_xattr("two", "redirect", "/one");
        }
        layers.lower(1).dir("d/sub").overlay_xattr("d/sub", "redirect", "/d");
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            // Two layers exchange the names, each against the other.
            assert_eq!(union.merged().names("one"), ["in-one"]);
            assert_eq!(union.merged().names("two"), ["in-two"]);
            assert_eq!(union.merged().names("d/sub"), ["a", "b", "sub"]);
            // The parent is that of the layer below, which has no redirect.
            assert_eq!(union.merged().names("d/sub/sub"), ["deep"]);
            assert_eq!(union.merged().read("d/sub/sub/deep"), b"deep");
        });
    });
}

#[test]
fn a_redirect_through_a_symlink_never_leaves_the_layer() {
    if !is_ours("the daemon is what a symlink could lead astray") {
        return;
    }
    trap(2, |layers| {
        bottom(&layers.lower(1));
        fs::create_dir(layers.path("outside")).expect("the test directory can be written");
        fs::write(layers.path("outside/secret"), "secret").expect("the test directory can be written");
        layers.lower(1).symlink("out", layers.path("outside")).symlink("up", "..");
        for (name, to) in [("bad1", "/out"), ("bad2", "/up/outside"), ("bad3", "out")] {
            layers.lower(0).dir(name).overlay_xattr(name, "redirect", to);
        }
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            for name in ["bad1", "bad2", "bad3"] {
                assert!(!union.merged().exists(Path::new(name).join("secret")), "{name}");
            }
            assert_eq!(union.merged().read("g"), b"lower");
        });
    });
}

#[test]
fn a_metacopy_is_eio_where_metacopies_are_not_followed() {
    is_eio_and_logged(|tree| metacopy(tree, "f", ""), "f", "metacopy");
}

#[test]
fn a_metacopy_without_data_below_is_eio() {
    for mode in modes() {
        for place in ["lower", "upper"] {
            eprintln!("--- {mode:?}, marks in the {place}");
            let _watchdog = Watchdog::start();
            let layers = Layers::new(2, mode.placement);
            bottom(&layers.lower(1));
            metacopy(&if place == "lower" { layers.lower(0) } else { layers.upper() }, "orphan", "");
            let lowers = LowersUnchanged::new(layers.lowers());
            let mut mount = layers.spec(mode.io).feature("metacopy", "on").mount();
            assert_eq!(touch_all(&mount.path().join("orphan")), [Errno::IO]);
            assert_eq!(mount.tree().read("f"), b"lower");
            mount.unmount().expect("the union can be unmounted");
            lowers.check();
        }
    }
}

#[test]
fn an_origin_that_is_garbage_does_no_harm() {
    trap(2, |layers| {
        bottom(&layers.lower(1));
        for (name, garbage) in [("f", &b"garbage"[..]), ("g", b""), ("d", &[0xff; 200]), ("new", &[0, 0xfb, 21, 0, 0])]
        {
            if name == "d" {
                layers.upper().dir(name);
            } else {
                layers.upper().file(name, "upper");
            }
            layers.upper().overlay_xattr(name, "origin", garbage).overlay_xattr("", "impure", "y");
        }
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["d", "f", "g", "new"]);
            assert_eq!(union.merged().names("d"), ["a", "b", "sub"]);
            for name in ["f", "g", "new"] {
                assert_eq!(union.merged().read(name), b"upper", "{name}");
            }
        });
    });
}

#[test]
fn every_format_that_is_written_hides_and_is_read_again() {
    if !is_ours("it writes one format") {
        return;
    }
    for format in ["char", "xattr", "dotwh"] {
        eprintln!("--- {format}");
        trap(2, |layers| bottom(&layers.lower(1))).mounted(|spec| spec.args(["--whiteout", format])).run(|union| {
            fs::remove_file(union.at("f")).expect("a file can be removed");
            fs::remove_dir_all(union.at("d")).expect("a directory can be removed");
            fs::create_dir(union.at("d")).expect("a directory can be made");
            fs::rename(union.at("g"), union.at("d/g")).expect("a file can be moved");
            union.live_and_after_remount(|union| {
                assert_eq!(union.merged().names(""), ["d"]);
                assert_eq!(union.merged().names("d"), ["g"]);
                assert!(union.upper().is_whiteout("f") && union.upper().is_whiteout("g"));
                assert_eq!(union.upper().is_char_whiteout("f"), format == "char");
                assert_eq!(union.upper().exists(".wh.f"), format == "dotwh");
            });
            fs::write(union.at("f"), "new").expect("the name is free");
            fs::create_dir(union.at("g")).expect("the name is free");
            union.live_and_after_remount(|union| {
                assert_eq!(union.merged().names(""), ["d", "f", "g"]);
                assert_eq!(union.merged().read("f"), b"new");
                assert_eq!(union.merged().names("g"), Vec::<String>::new());
            });
        });
    }
}

#[test]
fn what_is_removed_first_from_a_lower_directory_is_gone_in_every_format() {
    if !is_ours("it writes one format") {
        return;
    }
    for format in ["char", "xattr", "dotwh"] {
        eprintln!("--- {format}");
        trap(1, |layers| {
            layers.lower(0).file("d/a", "a").file("d/b", "b").file("d/sub/deep", "deep");
        })
        .mounted(|spec| spec.args(["--whiteout", format]))
        .run(|union| {
            // Nothing has listed the directory, which comes to upper with this.
            fs::remove_file(union.at("d/a")).expect("a file can be removed");
            fs::rename(union.at("d/b"), union.at("d/c")).expect("a file can be moved");
            let gone = |union: &Union| {
                for name in ["d/a", "d/b"] {
                    assert_eq!(errno(fs::metadata(union.at(name))), Errno::NOENT, "{name}");
                }
                assert_eq!(union.merged().read("d/c"), b"b");
            };
            gone(union);
            // Onto the names of what was removed: a file, and a directory with a part below.
            fs::rename(union.at("d/c"), union.at("d/a")).expect("the name is free");
            fs::rename(union.at("d/a"), union.at("d/c")).expect("a file can be moved");
            fs::create_dir(union.at("d/new")).expect("a directory can be made");
            fs::rename(union.at("d/new"), union.at("d/b")).expect("the name is free");
            fs::remove_dir(union.at("d/b")).expect("an empty directory can be removed");
            gone(union);
            union.live_and_after_remount(gone);
            assert_eq!(union.merged().names("d"), ["c", "sub"]);
        });
    }
}
