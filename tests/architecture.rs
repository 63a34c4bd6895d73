//! The rules of the design that a compiler does not know: which module may use which, where `unsafe` is, what may
//! panic, and how long a file is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use besides itself. Who is not named may use nothing.
const ARROWS: [(&str, &[&str]); 10] = [
    ("main", &["cli"]),
    ("cli", &["fuse", "fsck", "union", "layer", "sys", "image", "error", "config"]),
    ("fuse", &["union", "layer", "sys", "error", "config"]),
    ("union", &["layer", "sys", "error", "config"]),
    ("fsck", &["layer", "sys", "error", "config"]),
    ("image", &["layer", "sys", "error", "config"]),
    ("layer", &["sys", "error", "config"]),
    ("sys", &["error", "config"]),
    ("error", &["config"]),
    ("config", &["error"]),
];

/// Modules in which a request, or the bytes of a layer, must not cause a panic.
const NEVER_PANICS: [&str; 6] = ["union", "layer", "fuse", "fsck", "image", "sys"];

/// The most lines of a file, its tests left out.
const LINES_MAX: usize = 600;

/// A source file of the library.
struct Source {
    /// Below src, for messages.
    path: PathBuf,
    /// The module below the crate's root that it belongs to.
    module: String,
    /// Its text with comments, strings and tests blanked out, line by line as long as before.
    code: String,
    /// How many lines come before its tests.
    lines: usize,
}

impl Source {
    fn read(root: &Path, file: &Path) -> Self {
        let path = file.strip_prefix(root).expect("the file was found below src").to_owned();
        let first = path.iter().next().expect("a path below src has a part");
        let module = Path::new(first).file_stem().expect("a part of a path is a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut code = blank_texts(&text);
        let lines = blank_tests(&mut code);
        Self { path, module, code, lines }
    }

    /// Names a place for messages.
    fn at(&self, offset: usize) -> String {
        format!("src/{}:{}", self.path.display(), 1 + self.code[..offset].matches('\n').count())
    }

    /// Returns where `word` stands as a word of its own.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
            let before = self.code[..at].chars().next_back();
            let after = self.code[at + word.len()..].chars().next();
            let longer = word.ends_with(is_word) && after.is_some_and(is_word);
            !longer && !before.is_some_and(is_word)
        })
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads every file of the library.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("src can be listed") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source::read(&root, &path));
            }
        }
    }
    assert!(found.len() > 20, "only {} files were found in {}", found.len(), root.display());
    found
}

/// Replaces comments and the contents of strings by spaces; line breaks stay.
fn blank_texts(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_length(rest)
        } else if rest.starts_with("r\"") || rest.starts_with("r#") && !code.ends_with(is_word) {
            raw_string_length(rest)
        } else if c == '\'' {
            char_length(rest)
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[skipped..];
    }
    code
}

/// The length of the string literal that `text` begins with.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string literal that `text` begins with; of a raw identifier, its prefix.
fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|&c| c == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 2;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[2 + hashes..].find(&end).map_or(text.len(), |at| 2 + hashes + at + end.len())
}

/// The length of the character literal that `text` begins with; of a lifetime, its apostrophe.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => text[2..].find('\'').map_or(1, |at| if at == 0 { 4 } else { at + 3 }),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// Blanks every item under `#[cfg(test)]`, and returns how many lines come before the first module of tests.
fn blank_tests(code: &mut String) -> usize {
    const MARK: &str = "#[cfg(test)]";
    let mut lines = code.lines().count();
    while let Some(start) = code.find(MARK) {
        let item = &code[start..];
        let body = item.find(['{', ';']).unwrap_or(item.len());
        if item[..body].contains("mod ") {
            lines = lines.min(code[..start].matches('\n').count());
        }
        let end = start + if item[body..].starts_with('{') { body + block_length(&item[body..]) } else { body };
        let blank: String = code[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(start..end, &blank);
    }
    lines
}

/// The length of the block that `code` begins with, its braces included.
fn block_length(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Fails with every violation at once.
fn none(rule: &str, violations: &[String]) {
    let mut report = String::new();
    for violation in violations {
        writeln!(report, "  {violation}").expect("a String takes everything");
    }
    assert!(violations.is_empty(), "{rule}:\n{report}");
}

/// The modules that the path after `crate::`, or the group of paths, begins with.
fn roots(path: &str) -> Vec<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|&c| is_word(c)).collect::<String>();
    if !path.starts_with('{') {
        return vec![word(path)];
    }
    let group = &path[1..block_length(path) - 1];
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("there is one from the start").push(c);
    }
    parts.iter().map(|part| word(part)).filter(|root| !root.is_empty()).collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.module != "lib") {
        for root in ["crate::", "unionfs_rs::"] {
            for at in source.words(root) {
                for used in roots(&source.code[at + root.len()..]) {
                    let allowed = arrows.get(source.module.as_str()).is_some_and(|list| list.contains(&used.as_str()));
                    // A macro or a type of the crate's root is nobody's module.
                    let module = arrows.contains_key(used.as_str());
                    if used != source.module && module && !allowed {
                        violations.push(format!("{}: {} uses {used}", source.at(at), source.module));
                    }
                }
            }
        }
    }
    none("imports against cli → fuse → union → layer → sys, image → layer", &violations);
}

#[test]
fn other_modules_are_named_from_the_root_of_the_crate() {
    // `super::` out of a module would go unseen by the test above.
    let mut violations = Vec::new();
    for source in sources() {
        let deep = source.path.components().count();
        let is_root = source.path.ends_with("mod.rs") || deep == 1;
        let way_out = "super::".repeat(deep - usize::from(is_root && deep > 1));
        violations.extend(source.words(&way_out).map(|at| format!("{}: {way_out}", source.at(at))));
    }
    none("paths that leave their module by super", &violations);
}

#[test]
fn every_module_has_its_place_in_the_design() {
    let known = |module: &str| module == "lib" || ARROWS.iter().any(|(name, _)| *name == module);
    let unknown: Vec<String> =
        sources().iter().filter(|source| !known(&source.module)).map(|s| s.path.display().to_string()).collect();
    none("files of modules that the arrows do not name", &unknown);
}

#[test]
fn unsafe_is_in_sys_alone() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.module != "sys") {
        for word in ["unsafe", "allow(unsafe_code)", "expect(unsafe_code)"] {
            violations.extend(source.words(word).map(|at| format!("{}: {word}", source.at(at))));
        }
    }
    none("unsafe outside src/sys", &violations);
}

#[test]
fn nothing_on_the_way_of_a_request_panics_by_itself() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| NEVER_PANICS.contains(&source.module.as_str())) {
        for call in ["unwrap()", "expect(", "panic!", "todo!", "unimplemented!", "unreachable!", "unwrap_err()"] {
            let calls = source.words(call).filter(|&at| !is_const(&source.code, at));
            // The attribute is no call.
            let calls = calls.filter(|&at| !source.code[..at].ends_with("#["));
            violations.extend(calls.map(|at| format!("{}: {call}", source.at(at))));
        }
    }
    none("what may panic outside of tests and constants", &violations);
}

#[test]
fn what_would_follow_a_link_below_a_layer_is_left_to_sys() {
    // fchmodat(2) follows links always, and rustix answers EOPNOTSUPP where it is asked not to; the path calls follow them too.
    let calls = ["chmodat(", "fs::stat(", "fs::access(", "fs::chown(", "fs::statfs(", "fs::statvfs("];
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| ["union", "layer", "image"].contains(&source.module.as_str())) {
        for call in calls {
            violations.extend(source.words(call).map(|at| format!("{}: {call}", source.at(at))));
        }
    }
    none("calls that follow a symbolic link", &violations);
}

/// Whether `at` is in the value of a constant, which is computed when the program is built.
fn is_const(code: &str, at: usize) -> bool {
    let statement = code[..at].rfind([';', '{', '}']).map_or(&code[..at], |start| &code[start + 1..at]);
    let mut words = statement.split_whitespace().skip_while(|word| word.starts_with("pub"));
    words.next().is_some_and(|word| matches!(word, "const" | "static"))
}

#[test]
fn no_file_is_longer_than_a_reader_can_follow() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines > LINES_MAX)
        .map(|source| format!("src/{}: {} lines", source.path.display(), source.lines))
        .collect();
    none("files longer than 600 lines before their tests", &long);
}

#[test]
fn comments_strings_and_tests_are_told_from_code() {
    let mut code = blank_texts("a // unsafe\nb \"panic! \\\" {\" '{' '\\'' 'x: r#\"unsafe\"# /* todo! */ c");
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "x:", "c"]);
    code = "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn g() { h().unwrap() }\n}\nfn i() {}".into();
    assert_eq!(blank_tests(&mut code), 1);
    assert!(!code.contains("unwrap") && code.contains("fn i"));
    assert_eq!(roots("{error::Error, layer::{a, b}, sys}"), ["error", "layer", "sys"]);
    assert!(is_const("const A: B = B::new(1).expect(", 23) && !is_const("let a = b.expect(", 10));
}
