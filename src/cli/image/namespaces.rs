//! The namespaces in which a container's tree is mounted: nobody else sees it there, and it is gone with the last process.
//!
//! A plain user becomes root of a user namespace, of this user's subordinate ids if there are any (subuid(5)); they are given
//! by newuidmap and newgidmap, which must be asked from outside.

use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::process::Pid;
use rustix::thread::CapabilitySet;

use crate::cli::exit::{Exit, Failure};
use crate::sys::caps;
use crate::sys::namespace::{self, Namespaces, be_seen, unshare};

/// Subordinate ids: the first and how many.
type Range = (u32, u32);

/// Enters namespaces in which this process may mount. To be called while the process has one thread.
///
/// Errors: of the machine, where it does not permit that.
pub fn enter() -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| {
        let remedy = "run it as root, or where user namespaces are permitted (unionfs-rs doctor)";
        Failure::new(Exit::Machine, format!("{what}: {error}; {remedy}"))
    };
    if caps::effective(CapabilitySet::SYS_ADMIN) {
        unshare(Namespaces::Mounts).map_err(|error| failed("a namespace of mounts", error))?;
    } else {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let ids = subordinate_ids(uid);
        let mapper = ids.map(|(users, groups)| mapper((uid, users), (gid, groups))).transpose();
        let mapper = mapper.map_err(|error| failed("newuidmap", error))?;
        unshare(Namespaces::UsersAndMounts).map_err(|error| failed("a namespace of users", error))?;
        match mapper {
            Some(mapper) => finish(mapper).map_err(|error| failed("newuidmap and newgidmap", error))?,
            None => map_one(uid, gid).map_err(|error| failed("/proc/self/uid_map", error))?,
        }
        // So that `cp` finds the container.
        be_seen().map_err(|error| failed("prctl", error))?;
    }
    // What is mounted outside goes on coming in, and nothing goes out.
    let changed = rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC);
    changed.map_err(|errno| failed("/", errno.into()))
}

/// Enters the namespaces in which `server` has mounted a container. To be called while the process has one thread.
pub fn join(server: u32) -> Result<(), Failure> {
    let pid = i32::try_from(server).ok().and_then(Pid::from_raw);
    let joined = pid.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).and_then(namespace::join);
    joined.map_err(|error| {
        Failure::new(
            Exit::Machine,
            format!("the namespaces of process {server}: {error}; do it as the user who has mounted"),
        )
    })
}

/// Returns the first subordinate ids of a user; `None` where there are none, or nobody to map them.
fn subordinate_ids(uid: u32) -> Option<(Range, Range)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_uid = |line: &&str| line.split(':').nth(2) == Some(uid.to_string().as_str());
    let name = passwd.lines().find(of_uid).and_then(|line| line.split(':').next()).unwrap_or_default();
    let search = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&search).any(|dir| dir.join(name).is_file());
    if !there("newuidmap") || !there("newgidmap") {
        log::info!("newuidmap and newgidmap are not there (Debian: uidmap): in the container there is root alone");
        return None;
    }
    let first = |file: &str| range(&fs::read_to_string(file).unwrap_or_default(), name, uid);
    let ranges = first("/etc/subuid").zip(first("/etc/subgid"));
    if ranges.is_none() {
        log::info!("user {uid} has no subordinate ids (subuid(5)): in the container there is root alone");
    }
    ranges
}

/// Finds the first range of `text`, in the format of subuid(5).
fn range(text: &str, name: &str, uid: u32) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if owner.is_empty() || (owner != name && owner != uid.to_string()) {
            return None;
        }
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// Starts what maps the ids of this process when it is told to.
fn mapper((uid, users): (u32, Range), (gid, groups): (u32, Range)) -> io::Result<Child> {
    let map = |own: u32, (first, count): Range| format!("{} 0 {own} 1 1 {first} {count}", std::process::id());
    let script = format!("read -r go && newuidmap {} && newgidmap {}", map(uid, users), map(gid, groups));
    Command::new("sh").arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

/// Has the ids mapped.
fn finish(mut mapper: Child) -> io::Result<()> {
    if let Some(mut told) = mapper.stdin.take() {
        told.write_all(b"go\n")?;
    }
    let output = mapper.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", ")))
}

/// Makes this user root, and nobody else.
fn map_one(uid: u32, gid: u32) -> io::Result<()> {
    // Without it the kernel lets no group be mapped.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "other:1:2\n# a note\nuser:100000:65536\nuser:300000:5\n1000:7:8\n:9:9\nbad:x:1\n";
        for (name, uid, expected) in [
            ("user", 1, Some((100_000, 65536))),
            ("", 1000, Some((7, 8))),
            ("nobody", 9, None),
            ("", 9, None),
            ("bad", 9, None),
        ] {
            assert_eq!(range(text, name, uid), expected, "{name} {uid}");
        }
    }
}
