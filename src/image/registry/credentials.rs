//! Who somebody is at a registry, by the files that podman, skopeo and docker write: containers-auth.json(5).

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::reference::ImageName;
use crate::error::{Error, ErrorKind, Result};

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: HashMap<String, Entry>,
    /// Programs that know the credentials of a registry.
    cred_helpers: HashMap<String, String>,
    /// The one for all others.
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Returns user and password for the repository of `name`, of the first file that has some.
pub fn find(name: &ImageName) -> Result<Option<(String, String)>> {
    for path in files() {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => continue,
            Err(error) => return Err(Error::image_io(path.display(), &error)),
        };
        if let Some(found) = read(&path, &bytes, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns where such files are, in the order in which they hold.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = variable("REGISTRY_AUTH_FILE") {
        return vec![path];
    }
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.clone()?.join(".config")));
    let below = |dir: Option<PathBuf>, path: &str| dir.map(|dir| dir.join(path));
    let all = [
        below(variable("XDG_RUNTIME_DIR"), "containers/auth.json"),
        below(config, "containers/auth.json"),
        below(variable("DOCKER_CONFIG").or_else(|| below(home, ".docker")), "config.json"),
    ];
    all.into_iter().flatten().collect()
}

/// Finds the entry for the repository, or for what it is below, down to the host.
fn read(path: &Path, bytes: &[u8], name: &ImageName) -> Result<Option<(String, String)>> {
    let garbled = |reason: String| Error::image(path.display(), format!("{reason}; log in again"));
    let file: AuthFile = serde_json::from_slice(bytes).map_err(|error| garbled(format!("cannot be read: {error}")))?;
    let whole = name.base();
    // Docker's own registry has an address of its own in docker's files.
    let old = (name.registry() == "docker.io").then_some("https://index.docker.io/v1/");
    let mut keys: Vec<&str> = Vec::new();
    let mut key = whole.as_str();
    loop {
        keys.push(key);
        match key.rsplit_once('/') {
            Some((above, _)) => key = above,
            None => break,
        }
    }
    if let Some(helper) = file.cred_helpers.get(name.registry()) {
        return ask(Path::new(&format!("docker-credential-{helper}")), name.registry());
    }
    let Some(auth) = keys.into_iter().chain(old).find_map(|key| file.auths.get(key)?.auth.clone()) else {
        let Some(helper) = &file.creds_store else { return Ok(None) };
        return ask(Path::new(&format!("docker-credential-{helper}")), old.unwrap_or(name.registry()));
    };
    let text = STANDARD.decode(&auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    match pair {
        Some((user, password)) => Ok(Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))),
        None => Err(garbled(format!("its entry for {} is garbled", name.registry()))),
    }
}

/// Asks a helper, as docker does: the registry goes in, JSON comes out. `None` where it has no credentials for it.
fn ask(program: &Path, registry: &str) -> Result<Option<(String, String)>> {
    let failed = |reason: String| Error::image(program.display(), reason).of_kind(ErrorKind::Permission);
    let asked = || -> io::Result<Output> {
        let mut command = Command::new(program);
        let mut child =
            command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(registry.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = asked()
        .map_err(|error| failed(format!("cannot be asked for credentials: {error}; install it, or log in again")))?;
    if !output.status.success() {
        // It says so on standard output, in these words.
        let said = String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("has no credentials for {registry}: {}", said.trim())));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("its answer for {registry} cannot be read: {error}")))?;
    if answer.username == "<token>" {
        return Err(failed(format!("has a token for {registry}, and a user and password are needed")));
    }
    Ok(Some((answer.username, answer.secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_asked_as_docker_asks_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\nread registry\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            ask(&path, "quay.io")
        };
        let answer = r#"echo "{\"ServerURL\":\"$registry\",\"Username\":\"$1 $registry\",\"Secret\":\"s\"}""#;
        assert_eq!(helper("knows", answer).unwrap(), Some(("get quay.io".into(), "s".into())));
        assert_eq!(helper("not", "echo credentials not found in native keychain; exit 1").unwrap(), None);
        for (name, script, reason) in [
            ("fails", "echo locked >&2; exit 1", "has no credentials for quay.io: locked"),
            ("garbled", "echo {", "cannot be read"),
            ("token", r#"echo '{"Username":"<token>","Secret":"s"}'"#, "has a token"),
        ] {
            let error = helper(name, script).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert_eq!(error.kind(), ErrorKind::Permission);
        }
        let error = ask(&dir.path().join("nowhere"), "quay.io").unwrap_err().to_string();
        assert!(error.contains("nowhere: cannot be asked"), "{error}");
        let file = format!(
            r#"{{"auths":{{"a.io":{{"auth":"{}"}}}},"credHelpers":{{"a.io":"no-such-helper"}}}}"#,
            STANDARD.encode("u:p")
        );
        let of = |name: &str| read(Path::new("auth.json"), file.as_bytes(), &ImageName::parse(name).unwrap());
        assert!(of("a.io/app").unwrap_err().to_string().starts_with("docker-credential-no-such-helper: "));
        assert_eq!(of("b.io/app").unwrap(), None);
    }

    #[test]
    fn the_entry_nearest_to_the_repository_holds() {
        let entry = |text: &str| format!("{{\"auth\":\"{}\"}}", STANDARD.encode(text));
        let file = format!(
            "{{\"auths\":{{\"quay.io\":{},\"quay.io/team\":{},\"https://index.docker.io/v1/\":{},\"empty.io\":{{}}}}}}",
            entry("u:p"),
            entry("t:with:colons"),
            entry("d:x")
        );
        let find =
            |name: &str| read(Path::new("auth.json"), file.as_bytes(), &ImageName::parse(name).unwrap()).unwrap();
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(find("quay.io/other/app"), pair("u", "p"));
        assert_eq!(find("quay.io/team/app:1"), pair("t", "with:colons"));
        assert_eq!(find("debian"), pair("d", "x"));
        assert_eq!(find("empty.io/app"), None);
        assert_eq!(find("localhost/app"), None);
    }

    #[test]
    fn a_garbled_entry_is_named() {
        let name = ImageName::parse("quay.io/app").unwrap();
        for file in ["{", "{\"auths\":{\"quay.io\":{\"auth\":\"%\"}}}", "{\"auths\":{\"quay.io\":{\"auth\":\"YWJj\"}}}"]
        {
            let error = read(Path::new("auth.json"), file.as_bytes(), &name).unwrap_err().to_string();
            assert!(error.starts_with("auth.json: ") && error.ends_with("log in again"), "{error}");
        }
    }
}
