//! What layers are for: dive's formula worked by hand, and what a later layer hides.

use std::process::Command;

use unionfs_rs::image::analyze::{LayerSum, analyze};

use crate::archive::{Layer, Shop};
use crate::support::{binary, finish};

fn layers() -> Vec<Layer> {
    let of = |n: usize| "x".repeat(n);
    vec![
        Layer::new()
            .dir("d", 0o755)
            .file("d/a", &of(100))
            .file("d/b", &of(50))
            .file("same", &of(10))
            .file("secret", &of(7)),
        Layer::new().file("same", &of(30)).file("new", &of(5)).dir("empty", 0o755),
        Layer::new().file(".wh.d", "").file(".wh.secret", "").file("same", &of(20)),
    ]
}

#[test]
fn efficiency_and_waste_are_those_of_the_formula() {
    let shop = Shop::new();
    let image = shop.image(layers()).unwrap();
    let analysis = analyze(&shop.store, &image).unwrap();
    // Leaves by layer: d/a 100, d/b 50, same 10, secret 7; same 30, new 5, empty 0; d (removed, a directory) 150,
    // secret (removed, a file) 0, same 20.
    // Least:  100 + 50 + 10 + 0 + 5 + 0 + 150 = 315.  All: 100 + 50 + 60 + 7 + 5 + 0 + 150 = 372.
    assert_eq!(analysis.efficiency, 315.0 / 372.0);
    // Paths of several layers: same 60, secret 7.
    assert_eq!(analysis.wasted_bytes, 67);
    assert_eq!(analysis.wasted_user_percent, 67.0 / 55.0);
    let repeated: Vec<(String, u64, u64)> = analysis
        .repeated
        .iter()
        .map(|path| (String::from_utf8_lossy(&path.path).into_owned(), path.layers, path.bytes))
        .collect();
    assert_eq!(repeated, [("same".to_owned(), 3, 60), ("secret".to_owned(), 2, 7)]);
    // Stored 167 + 35 + 20, shown 20 + 5.
    assert_eq!(analysis.hidden_bytes, 222 - 25);
    let sum = |added, replaced, removed, bytes| LayerSum { added, replaced, removed, bytes };
    assert_eq!(analysis.layers, [sum(4, 0, 0, 167), sum(1, 1, 0, 35), sum(0, 1, 2, 20)]);
}

#[test]
fn a_limit_that_is_not_kept_sets_the_exit_code() {
    let shop = Shop::new();
    shop.image(layers()).unwrap();
    let store = shop.dir.path().join("store");
    let run = |limits: &[&str]| {
        finish(Command::new(binary()).args(["analyze", "test:1"]).args(limits).arg("--store").arg(&store))
    };
    for limits in [
        &["--lowest-efficiency", "0.8"][..],
        &["--highest-wasted-bytes", "67"],
        &["--highest-user-wasted-percent", "1.3"],
    ] {
        assert_eq!(run(limits).code, Some(0), "{limits:?}");
    }
    for limits in [
        &["--lowest-efficiency", "0.9"][..],
        &["--highest-wasted-bytes", "66"],
        &["--highest-user-wasted-percent", "1.2"],
    ] {
        let ran = run(limits);
        assert!(ran.code == Some(1) && ran.err.contains("was"), "{limits:?}: {}", ran.err);
    }
}

#[test]
fn a_secret_that_a_later_layer_removes_is_shown_with_its_layer() {
    let shop = Shop::new();
    shop.image(layers()).unwrap();
    let store = shop.dir.path().join("store");
    let which = |path: &str| {
        let ran = finish(Command::new(binary()).args(["which", "test:1", path]).arg("--store").arg(&store));
        let rows = ran
            .out
            .lines()
            .skip(1)
            .map(|row| row.split_whitespace().filter(|word| word.len() != 12).collect::<Vec<_>>().join(" "));
        (ran.code, rows.collect::<Vec<_>>())
    };
    let answer = |rows: &[&str]| (Some(0), rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>());
    assert_eq!(which("/secret"), answer(&["3 removes it", "1 hidden"]));
    assert_eq!(which("same"), answer(&["3 shown", "2 hidden", "1 hidden"]));
    assert_eq!(which("/d/a"), answer(&["3 removes it", "1 hidden"]));
    assert_eq!(which("/new"), answer(&["2 shown"]));
    assert_eq!(which("/nowhere").0, Some(1));
}
