//! What `commit --change` says: the instructions of a Dockerfile that change how an image is run, and nothing in its layers.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// The key of the image's configuration.
    key: &'static str,
    change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// It is this.
    Set(Value),
    /// The map has these besides.
    Insert(Vec<(String, Value)>),
    /// The list has these `NAME=value` besides, in place of those of the same names.
    Assign(Vec<(String, String)>),
    /// The list has this besides.
    Push(Value),
    /// The path is this, as seen from where it was.
    Enter(String),
}

impl Instruction {
    /// Reads one: `CMD ["sh"]`, `ENV A=b`, `LABEL a=b`, `USER x`.
    ///
    /// Errors: [`Error::Image`] for what changes no configuration, or is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::image(format!("{text:?}"), reason);
        let (name, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        let whole = || if rest.is_empty() { Err(wrong("lacks its value")) } else { Ok(rest.to_owned()) };
        let words = || words(rest).ok_or_else(|| wrong("has a quote that is not closed"));
        let one = || {
            let mut all = words()?.into_iter();
            match (all.next(), all.next()) {
                (Some(word), None) => Ok(word),
                (None, _) => Err(wrong("lacks its value")),
                _ => Err(wrong("has more than one word; put what has blanks in quotes")),
            }
        };
        let pairs = || match pair_of_line(rest) {
            Some(pair) => Ok(vec![pair]),
            None => pairs(&words()?).ok_or_else(|| wrong("is not NAME=value")),
        };
        let paths = |list: Vec<String>| list.into_iter().map(|path| (path, json!({}))).collect();
        let (key, change) = match name.to_ascii_uppercase().as_str() {
            "CMD" => ("Cmd", Change::Set(command(rest)?)),
            "ENTRYPOINT" => ("Entrypoint", Change::Set(command(rest)?)),
            "ENV" => ("Env", Change::Assign(pairs()?)),
            "EXPOSE" => {
                let ports: Option<Vec<String>> = words()?.iter().map(|word| port(word)).collect();
                let ports =
                    ports.filter(|ports| !ports.is_empty()).ok_or_else(|| wrong("is no PORT[/tcp|udp|sctp]"))?;
                ("ExposedPorts", Change::Insert(paths(ports)))
            }
            "LABEL" => {
                let labels = pairs()?.into_iter().map(|(name, value)| (name, json!(value)));
                ("Labels", Change::Insert(labels.collect()))
            }
            "ONBUILD" => ("OnBuild", Change::Push(json!(whole()?))),
            "STOPSIGNAL" => ("StopSignal", Change::Set(json!(one()?))),
            "USER" => ("User", Change::Set(json!(one()?))),
            "VOLUME" => {
                let list = serde_json::from_str::<Vec<String>>(rest).or_else(|_| words())?;
                if list.is_empty() {
                    return Err(wrong("lacks its value"));
                }
                ("Volumes", Change::Insert(paths(list)))
            }
            "WORKDIR" => {
                ("WorkingDir", Change::Enter(if rest.contains(['"', '\'', '\\']) { one()? } else { whole()? }))
            }
            _ => {
                let known = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR";
                return Err(wrong(&format!("is no change of a configuration; write one of {known}")));
            }
        };
        Ok(Self { key, change })
    }

    /// Changes the `config` of an image's configuration.
    pub fn apply(&self, config: &mut Map<String, Value>) {
        let old = config.remove(self.key).unwrap_or_default();
        let new = match &self.change {
            Change::Set(value) => value.clone(),
            Change::Insert(all) => {
                let mut map = object(old);
                map.extend(all.iter().cloned());
                Value::Object(map)
            }
            Change::Push(value) => {
                let mut list = array(old);
                list.push(value.clone());
                Value::Array(list)
            }
            Change::Enter(path) => json!(entered(old.as_str().unwrap_or_default(), path)),
            Change::Assign(all) => {
                let mut list = array(old);
                for (name, value) in all {
                    let is_it = |entry: &Value| entry.as_str().and_then(|entry| entry.split('=').next()) == Some(name);
                    let new = json!(format!("{name}={value}"));
                    match list.iter_mut().find(|entry| is_it(entry)) {
                        Some(old) => *old = new,
                        None => list.push(new),
                    }
                }
                Value::Array(list)
            }
        };
        config.insert(self.key.into(), new);
    }
}

/// Returns where `path` leads from the directory `from`, both seen from the root; links are not asked.
fn entered(from: &str, path: &str) -> String {
    let from = if path.starts_with('/') { "" } else { from };
    let mut names: Vec<&str> = Vec::new();
    for name in from.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

/// Reads `PORT[/PROTOCOL]`.
fn port(word: &str) -> Option<String> {
    let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let known = matches!(protocol, "tcp" | "udp" | "sctp");
    number.parse::<u16>().ok().filter(|_| known).map(|number| format!("{number}/{protocol}"))
}

/// Reads a command: a list in JSON, or a line for the shell. Nothing is no command.
fn command(text: &str) -> Result<Value> {
    if text.starts_with('[') {
        let list: Vec<String> = serde_json::from_str(text)
            .map_err(|error| Error::image(format!("{text:?}"), format!("is no list of words in JSON: {error}")))?;
        return Ok(json!(list));
    }
    Ok(if text.is_empty() { Value::Null } else { json!(["/bin/sh", "-c", text]) })
}

/// Reads `NAME value` to the end of the line; `None` where it is `NAME=value ...`.
fn pair_of_line(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once(char::is_whitespace).filter(|(name, _)| !name.contains('='))?;
    Some((name.into(), value.trim().into()))
}

/// Reads `NAME=value ...`.
fn pairs(words: &[String]) -> Option<Vec<(String, String)>> {
    let pair = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    let pairs: Option<Vec<_>> = words.iter().map(pair).collect();
    pairs.filter(|pairs| !pairs.is_empty())
}

/// Parts words at blanks; quotes and backslashes keep them together. `None` where a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(config: Value, instructions: &[&str]) -> Value {
        let Value::Object(mut config) = config else { panic!("{config} is no object") };
        for text in instructions {
            Instruction::parse(text).unwrap().apply(&mut config);
        }
        Value::Object(config)
    }

    #[test]
    fn instructions_change_what_they_say() {
        let before = json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "Labels": null});
        let after = changed(
            before,
            &[
                r#"CMD ["a", "b c"]"#,
                "entrypoint exec a",
                "ENV A=2 B=\"x y\" C='z'",
                "ENV D it's f",
                "EXPOSE 80 53/udp",
                "LABEL one=1 two=\"2 3\"",
                "USER www",
                r#"VOLUME ["/a b", "/c"]"#,
                "VOLUME /d",
                "WORKDIR /srv",
                "STOPSIGNAL SIGQUIT",
                "ONBUILD RUN true",
            ],
        );
        let expected = json!({
            "Env": ["PATH=/bin", "A=2", "B=x y", "C=z", "D=it's f"],
            "Cmd": ["a", "b c"],
            "Entrypoint": ["/bin/sh", "-c", "exec a"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Labels": {"one": "1", "two": "2 3"},
            "User": "www",
            "Volumes": {"/a b": {}, "/c": {}, "/d": {}},
            "WorkingDir": "/srv",
            "StopSignal": "SIGQUIT",
            "OnBuild": ["RUN true"],
        });
        assert_eq!(after, expected);
    }

    #[test]
    fn a_directory_to_work_in_is_seen_from_the_one_before() {
        for (from, instruction, expected) in [
            (json!("/srv/a"), "WORKDIR b", "/srv/a/b"),
            (json!("/srv/a"), "WORKDIR ../b/./c/", "/srv/b/c"),
            (json!("/srv/a"), "WORKDIR \"/b c\"", "/b c"),
            (json!("/srv"), "WORKDIR /b c", "/b c"),
            (json!("/srv"), "WORKDIR ../../..", "/"),
            (Value::Null, "WORKDIR b", "/b"),
        ] {
            assert_eq!(changed(json!({"WorkingDir": from}), &[instruction])["WorkingDir"], expected, "{instruction}");
        }
    }

    #[test]
    fn what_changes_no_configuration_is_refused() {
        for (text, reason) in [
            ("RUN true", "is no change of a configuration"),
            ("", "is no change of a configuration"),
            ("ENV", "is not NAME=value"),
            ("LABEL =x", "is not NAME=value"),
            ("USER", "lacks its value"),
            ("VOLUME", "lacks its value"),
            ("EXPOSE", "is no PORT"),
            ("EXPOSE 80-82", "is no PORT"),
            ("EXPOSE 80/x", "is no PORT"),
            (r#"CMD ["a""#, "no list of words"),
            ("ENV A=\"b", "not closed"),
            ("USER a b", "more than one word"),
            ("STOPSIGNAL", "lacks its value"),
            ("WORKDIR \"/srv", "not closed"),
            ("WORKDIR \"/a b\" c", "more than one word"),
            ("WORKDIR", "lacks its value"),
        ] {
            let error = Instruction::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
