//! What every command about images prints, as it is kept in `snapshots`: `cargo insta review` shows what a change did to it.
//!
//! What is of this machine or this moment has a placeholder: containers' ids, times ago, what the disk takes.

use std::fmt::Write as _;
use std::process::Command;

use crate::archive::{Layer, Shop, docker_archive_of};
use crate::support::{binary, finish, on_kernel};

const CONFIG: &str = r#""created":"2024-02-03T04:05:06.789Z","author":"somebody","config":{"Env":["PATH=/bin","A=b"],"Entrypoint":["/init"],"Cmd":["serve"],"User":"www","WorkingDir":"/srv","Labels":{"a":"1"},"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"StopSignal":"SIGQUIT"},"history":[{"created":"2024-01-01T00:00:00Z","created_by":"/bin/sh -c #(nop) ADD file:1 in /"},{"created":"2024-01-02T00:00:00Z","created_by":"/bin/sh -c #(nop) ENV A=b","empty_layer":true},{"created":"2024-02-03T04:05:06Z","created_by":"/bin/sh -c make\tinstall && rm -r /tmp/everything that was needed for it","comment":"a comment"}],"#;

fn layers() -> Vec<Layer> {
    vec![
        Layer::new()
            .dir("./", 0o755)
            .dir("bin", 0o755)
            .file("bin/tool", &"x".repeat(3000))
            .file("etc/conf", "old")
            .file("etc/secret", "password")
            .symlink("lib", "usr/lib")
            .file("usr/lib/lib.so", &"l".repeat(1234)),
        Layer::new()
            .file("etc/conf", "new text")
            .file("etc/.wh.secret", "")
            .file("srv/\u{1b}[31mred", "a name for a terminal"),
    ]
}

/// A store with images, and what was asked of it so far.
struct Asked {
    shop: Shop,
    text: String,
    /// What has a placeholder besides.
    filters: Vec<(String, &'static str)>,
}

impl Asked {
    fn new() -> Self {
        let shop = Shop::new();
        let layers: Vec<Vec<u8>> = layers().into_iter().map(Layer::tar).collect();
        let archive = docker_archive_of("registry.example/team/app:1", &layers, CONFIG);
        std::fs::write(shop.dir.path().join("app.tar"), archive).expect("there is room");
        let first: Vec<Vec<u8>> = layers.into_iter().take(1).collect();
        let archive = docker_archive_of("localhost/base:latest", &first, "");
        std::fs::write(shop.dir.path().join("base.tar"), archive).expect("there is room");
        Self { shop, text: String::new(), filters: Vec::new() }
    }

    /// Runs a command line, and notes it with what it prints.
    fn ask(&mut self, line: &str) -> String {
        let dir = self.shop.dir.path();
        let mut command = Command::new(binary());
        command.args(line.split_whitespace()).current_dir(dir).env("UNIONFS_RS_STORE", dir.join("commands"));
        let ran = finish(command.env("SOURCE_DATE_EPOCH", "1700000000"));
        writeln!(self.text, "$ unionfs-rs {line}").expect("memory takes it");
        self.text.push_str(&ran.out);
        ran.err.lines().for_each(|line| writeln!(self.text, "! {line}").expect("memory takes it"));
        if ran.code != Some(0) {
            writeln!(self.text, "[{}]", ran.code.unwrap_or(-1)).expect("memory takes it");
        }
        self.text.push('\n');
        ran.out.trim().to_owned()
    }

    /// Compares all that was printed with what is kept.
    fn check(self, name: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.set_snapshot_path("snapshots");
        settings.add_filter(&regex_of(self.shop.dir.path().to_str().expect("it is text")), "DIR");
        settings.add_filter(r"\b\d+ (?:seconds?|minutes?|hours?|days?|weeks?|months?|years?) ago", "[AGO]");
        settings.add_filter(r"Less than a second ago", "[AGO]");
        settings.add_filter(r" +\[AGO\] +", "  [AGO]  ");
        settings.add_filter(r"\bCREATED {2,}", "CREATED  ");
        // What the file system takes for it.
        settings.add_filter(r"(?m)^([0-9a-f]{12} .*?) +[\d.]+ k?B +[\d.]+ k?B$", "$1  [SIZE]  [SIZE]");
        settings.add_filter(r"takes [\d.]+ k?B of the disk", "takes [SIZE] of the disk");
        settings.add_filter(r#"("(?:shared|unique|total)"): \d+"#, "$1: [BYTES]");
        for (pattern, placeholder) in &self.filters {
            settings.add_filter(pattern, *placeholder);
        }
        settings.bind(|| insta::assert_snapshot!(name, self.text));
    }
}

/// Returns the pattern that is `text` and nothing else.
fn regex_of(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_alphanumeric() { letter.to_string() } else { format!("\\{letter}") })
        .collect()
}

#[test]
fn what_is_said_of_images() {
    let mut asked = Asked::new();
    for line in [
        "load app.tar",
        "load base.tar",
        "images",
        "images --digests",
        "images -q --no-trunc",
        "history app",
        "history registry.example/team/app:1",
        "history --no-trunc registry.example/team/app:1",
        "history --json registry.example/team/app:1",
        "inspect registry.example/team/app:1",
        "tag registry.example/team/app:1 app:2",
        "images",
        "diff base registry.example/team/app:1",
        "diff --stat base app:2",
        "diff --json base app:2",
        "analyze app:2",
        "analyze --json app:2",
        "analyze --lowest-efficiency 1 app:2",
        "tree app:2",
        "tree --layer 2 app:2",
        "tree --depth 1 --bytes app:2",
        "tree --paths app:2 /etc",
        "which app:2 /etc/conf",
        "which app:2 /etc/secret",
        "which app:2 /nowhere",
        "save -o saved.tar app:2",
        "save --format oci app:2",
        "save --format oci -o layout app:2",
        "load layout",
        "cp app:2:/etc/conf copied",
        "cp app:2:/nowhere copied",
        "df",
        "df --json",
        "verify",
        "rmi app:2",
        "rmi app:2",
        "rmi registry.example/team/app:1 base",
        "gc",
        "images",
        "verify",
    ] {
        asked.ask(line);
    }
    asked.check("images");
}

#[test]
fn what_is_said_of_containers() {
    if on_kernel() {
        crate::skip!("the containers of a store are not the kernel's");
    }
    let mut asked = Asked::new();
    asked.ask("load app.tar");
    let id = asked.ask("create registry.example/team/app:1");
    std::fs::write(asked.shop.dir.path().join("file"), "new").expect("there is room");
    std::fs::create_dir(asked.shop.dir.path().join("target")).expect("there is room");
    for line in [
        "ps",
        "cp ./file ID:/etc/file",
        "cp ./file ID:/etc/conf",
        "diff ID",
        "diff --json ID",
        "diff --stat ID",
        "diff --lower nowhere ID",
        "apply ID target",
        "apply ID target /nowhere",
        "discard ID",
        "discard ID /nowhere",
        "discard ID /",
        "discard ID ..",
        "discard ID /etc/file",
        "diff ID",
        "export -o tree.tar ID",
        "export --oci --name out:1 -o out.tar ID",
        "commit ID app:2 -m why -a who --change USER=0",
        "commit ID app:2 --message why --author who --created-by how --change CMD",
        "history app:2",
        "discard --all ID",
        "diff ID",
        "mount --container ID target",
        "ps",
        "rm ID",
        "discard --all ID",
        "umount target",
        "rm ID",
        "ps",
        "rm ID",
        "mount --container ID target",
        "run --container ID true",
        "run nothing true",
    ] {
        let line = line.replace("ID", &id);
        asked.ask(&line);
    }
    asked.text = asked.text.replace(&id, "[CONTAINER]");
    // They have the times of this run in them.
    for digits in [64, 12] {
        asked.filters.push((format!(r"(?m)^[0-9a-f]{{{digits}}}\b"), "[ID]"));
    }
    asked.check("containers");
}

#[test]
fn what_is_said_of_what_is_wrong() {
    let mut asked = Asked::new();
    std::fs::write(asked.shop.dir.path().join("empty.tar"), [0; 1024]).expect("there is room");
    std::fs::write(asked.shop.dir.path().join("text"), "no archive").expect("there is room");
    for line in [
        "load empty.tar",
        "load text",
        "load nowhere.tar",
        "load --platform linux app.tar",
        "inspect nothing",
        "history nothing",
        "tag nothing other",
        "tag nothing Wrong:Name",
        "rmi nothing",
        "save nothing",
        "create nothing",
        "rm 0000",
        "diff 0000",
        "diff one two",
        "commit 0000",
        "apply 0000 .",
        "export nothing",
        "tree nothing",
        "explore nothing",
        "analyze nothing",
        "cp nothing other",
        "mount --image nothing .",
        "run --network other nothing",
        "images --store text",
        "pull Wrong:Name",
        "pull 127.0.0.1:1/nothing:1",
        "push nothing",
    ] {
        asked.ask(line);
    }
    // A blob that the disk has damaged.
    asked.ask("load app.tar");
    let blobs = asked.shop.dir.path().join("commands/blobs/sha256");
    let largest = std::fs::read_dir(blobs).expect("it is there").map(|entry| entry.expect("it is there").path());
    let largest = largest.max_by_key(|path| path.metadata().map_or(0, |is| is.len())).expect("there is one");
    let mut bytes = std::fs::read(&largest).expect("it is there");
    bytes[700] ^= 1;
    std::fs::write(&largest, bytes).expect("it is ours");
    asked.ask("verify");
    asked.ask("save -o saved.tar registry.example/team/app:1");
    asked.check("errors");
}
