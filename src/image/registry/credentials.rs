//! Who somebody is at a registry, by the files that podman, skopeo and docker write: containers-auth.json(5).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::reference::ImageName;
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
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
    let Some(auth) = keys.into_iter().chain(old).find_map(|key| file.auths.get(key)?.auth.clone()) else {
        return Ok(None);
    };
    let text = STANDARD.decode(&auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.split_once(':'));
    match pair {
        Some((user, password)) => Ok(Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))),
        None => Err(garbled(format!("its entry for {} is garbled", name.registry()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
