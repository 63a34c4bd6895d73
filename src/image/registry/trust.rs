//! Whom a registry's certificate may be of, besides the system's authorities: what containers-certs.d(5) says, in the
//! directories of podman and of docker.

use std::io;
use std::path::{Path, PathBuf};

use oci_client::client::{Certificate, CertificateEncoding};

use crate::error::{Error, Result};

/// Returns the certificates that are trusted for `registry`, `host[:port]`.
pub fn certificates(registry: &str) -> Result<Vec<Certificate>> {
    let own = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let own = own.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let own = own.map(|config| config.join("containers/certs.d"));
    let mut certificates = Vec::new();
    for dir in own.into_iter().chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]) {
        certificates.extend(in_dir(&dir.join(registry))?);
    }
    Ok(certificates)
}

/// Reads the files `*.crt`; those of another ending are a client's own.
fn in_dir(dir: &Path) -> Result<Vec<Certificate>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::image_io(dir.display(), &error)),
    };
    let mut certificates = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::image_io(dir.display(), &error))?.path();
        if path.extension().is_some_and(|ending| ending == "crt") {
            let data = std::fs::read(&path).map_err(|error| Error::image_io(path.display(), &error))?;
            certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
    }
    Ok(certificates)
}
