//! The argument form of fuse-overlayfs, for container runtimes, mount.fuse3 and mount(8).
//!
//! The options are those of `mount`, with a few more names, and the rules of that program: what is not known is a
//! warning, since runtimes pass on what their users have configured for it. What is known and cannot be read is an
//! error here as well: a map of owners that is half understood would be worse than no mount.

mod table;
mod words;

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use self::table::{GRANTED, SPECS, VOIDS};
use self::words::{FUSE_OVERLAYFS, Flag, Form, Words};
use super::args;
use super::exit::{Exit, Failure};
use super::options::{self, Item};
use super::settings::{Settings, Spelling, all, in_text, is_for_others};
use super::table::TEXT_ONLY;
use crate::config::RedirectDir;

/// What a command line in this form asks for.
#[derive(Debug)]
pub enum Request {
    /// To print this.
    Print(String),
    /// To mount, and to say beforehand what is not as it was asked for.
    Mount {
        /// What to mount.
        settings: Box<Settings>,
        /// One line for each option of which nothing follows.
        warnings: Vec<String>,
        /// Whether to leave out the mount itself.
        fake: bool,
    },
}

/// Reads a command line, the program's name first; `None` where it is not in this form.
pub fn read(argv: &[OsString]) -> Option<Result<Request, Failure>> {
    let form = Form::of(argv, |word| args::command().get_subcommands().any(|command| word == command.get_name()))?;
    Some(Words::read(form, argv.get(1..).unwrap_or_default()).and_then(|words| request(&words)))
}

fn request(words: &Words) -> Result<Request, Failure> {
    if words.has(Flag::Help) {
        return Ok(Request::Print(help()));
    }
    if words.has(Flag::Version) {
        let role = if words.is_fuse_overlayfs() { " in place of fuse-overlayfs" } else { "" };
        return Ok(Request::Print(format!("{} {}{role}\n", args::NAME, env!("CARGO_PKG_VERSION"))));
    }
    let mut warnings = Vec::new();
    let settings = Box::new(settings(words, &mut warnings)?);
    Ok(Request::Mount { settings, warnings, fake: words.has(Flag::Fake) })
}

fn settings(words: &Words, warnings: &mut Vec<String>) -> Result<Settings, Failure> {
    let (source, mountpoint) = match words.operands.as_slice() {
        [] => (None, None),
        [mountpoint] => (None, Some(mountpoint)),
        [source, mountpoint] => (Some(source), Some(mountpoint)),
        [_, _, more, ..] => {
            return Err(usage(format!("{}: one operand too many; give [SOURCE] MOUNTPOINT", more.display())));
        }
    };
    let mut settings = defaults(words);
    if let Some(source) = source {
        settings.mount.fsname =
            options::label(source).map_err(|error| usage(format!("{}: {error}", source.display())))?;
    }
    for text in &words.options {
        let items = options::split_options(text).map_err(|error| usage(format!("-o {}: {error}", text.display())))?;
        for item in join_maps(items) {
            if let Some(warning) = set(&mut settings, &item)?
                && !warnings.contains(&warning)
            {
                warnings.push(warning);
            }
        }
    }
    if let Some(mountpoint) = mountpoint {
        settings.mount.mountpoint = mountpoint.into();
    }
    if settings.mount.mountpoint.as_os_str().is_empty() {
        return Err(usage("no mountpoint is given; name the directory to mount on"));
    }
    if settings.union.lowers.is_empty() {
        return Err(usage("no lower layer is given; name at least one with -o lowerdir=DIR"));
    }
    if settings.union.upper.is_none() && settings.union.work.take().is_some() {
        warnings.push("-o workdir: it is for an upper, and none is given; it is ignored".into());
    }
    Ok(settings)
}

/// Returns what holds before the options: where it differs from `mount`, it is as fuse-overlayfs has it.
fn defaults(words: &Words) -> Settings {
    let mut settings = Settings::new("");
    settings.union.redirect_dir = RedirectDir::Follow;
    // A runtime detaches a mount and mounts its upper again at once, on machines that are busy with others.
    settings.union.patience = Duration::from_secs(10);
    if words.is_fuse_overlayfs() {
        settings.mount.fsname = FUSE_OVERLAYFS.into();
        settings.mount.subtype = FUSE_OVERLAYFS.into();
    }
    for flag in &words.flags {
        match flag {
            Flag::Foreground => settings.foreground = true,
            Flag::Debug => table::debug(&mut settings),
            Flag::Single => settings.mount.threads = Some(std::num::NonZeroUsize::MIN),
            Flag::Fake | Flag::Help | Flag::Version => {}
        }
    }
    settings
}

/// Puts maps of owners together again whose groups the manual of fuse-overlayfs parts by commas.
fn join_maps(items: Vec<Item>) -> Vec<Item> {
    let mut joined: Vec<Item> = Vec::with_capacity(items.len());
    for item in items {
        let is_group = item.value.is_none() && item.name.as_encoded_bytes().iter().all(is_of_a_map);
        match joined.last_mut() {
            Some(Item { name, value: Some(map) }) if is_group && (name == "uidmapping" || name == "gidmapping") => {
                map.push(",");
                map.push(item.name);
            }
            _ => joined.push(item),
        }
    }
    joined
}

fn is_of_a_map(byte: &u8) -> bool {
    byte.is_ascii_digit() || *byte == b':'
}

/// Sets one option; returns the warning where nothing follows of it.
fn set(settings: &mut Settings, item: &Item) -> Result<Option<String>, Failure> {
    let name = item.name.to_str().unwrap_or_default();
    if let Some(spec) = SPECS.iter().find(|spec| spec.name == name).or_else(|| in_text(name)) {
        settings.set(spec, Spelling::Text, item.value.as_deref()).map_err(|error| usage(error.to_string()))?;
        return Ok(None);
    }
    if GRANTED.contains(&name) || is_for_others(name) {
        return Ok(None);
    }
    if name == "remount" {
        // mount(8) asks its helpers for it, and would get a second mount over the first.
        return Err(usage("-o remount: what is mounted cannot be changed; unmount it, and mount it again"));
    }
    let Some(void) = VOIDS.iter().find(|void| void.name == name) else {
        return Ok(Some(format!("-o {}: unknown option, which is ignored", item.name.display())));
    };
    let granted = item.value.as_deref() == Some(OsStr::new(void.granted));
    Ok((!granted).then(|| format!("-o {name}: ignored: {}", void.instead)))
}

fn help() -> String {
    let mut names: Vec<&str> = all().chain(TEXT_ONLY).chain(SPECS).map(|spec| spec.name).collect();
    names.sort_unstable();
    let mut text = "\
Usage: fuse-overlayfs [-f] [-d] [-s] -o OPTION[=VALUE],... MOUNTPOINT
       unionfs-rs [-f] [-d] [-s] -o OPTION[=VALUE],... [SOURCE] MOUNTPOINT
       mount.fuse.unionfs-rs SOURCE MOUNTPOINT [-fnsv] [-o OPTION[=VALUE],...] [-t TYPE]

  -o OPTION[=VALUE],...  options; may be repeated
  -f, --foreground       stay, and serve the mount; of mount(8)'s helper: do all but the mount
  -d, --debug            stay, and log what is done
  -s                     serve with one thread
  -h, --help             print this
  -V, --version          print the version

Options, as `unionfs-rs mount --help` explains them:
"
    .to_owned();
    let mut column = 0;
    for name in names {
        let room = column + name.len() + 2 <= 100;
        text.push_str(if column == 0 || !room { "\n  " } else { ", " });
        column = if room { column } else { 0 } + name.len() + 2;
        text.push_str(name);
    }
    text.push_str("\n\nUnknown options are warnings. A mount without upperdir= is read-only.\n");
    text
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Access, Fsync, IdMap, IdRange, IoMode, KEEP, Permissions, Propagation, Source};

    fn parse(line: &[&str]) -> Result<Request, Failure> {
        let argv: Vec<OsString> = line.iter().map(OsString::from).collect();
        read(&argv).unwrap_or_else(|| panic!("{line:?} is not taken for this form"))
    }

    fn mounts(line: &[&str]) -> (Settings, Vec<String>) {
        match parse(line) {
            Ok(Request::Mount { settings, warnings, .. }) => (*settings, warnings),
            other => panic!("{line:?}: {other:?}"),
        }
    }

    /// Returns what the options of `text` make of a mount.
    fn told(text: &str) -> (Settings, Vec<String>) {
        mounts(&["fuse-overlayfs", "-o", &format!("lowerdir=l,{text}"), "m"])
    }

    fn silent(text: &str) -> Settings {
        let (settings, warnings) = told(text);
        assert_eq!(warnings, [""; 0], "{text}");
        settings
    }

    fn refused(line: &[&str]) -> String {
        match parse(line) {
            Err(failure) if failure.exit == Exit::Usage => failure.message,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn map(ranges: &[(u32, u32, u32)]) -> IdMap {
        let range = |&(stored, shown, count): &_| IdRange { stored, shown, count };
        IdMap::new(ranges.iter().map(range).collect()).expect("the ranges are apart")
    }

    #[test]
    fn what_podman_passes_is_understood() {
        let layers = "lowerdir=/s/overlay/l/3YTKVZKQRYNPVGKZ5ZWLTTJJ5T:/s/overlay/l/VCSPCB5VHNRLLCNTN5CWRTTGHT";
        let dirs = "upperdir=/s/overlay/7b9e/diff,workdir=/s/overlay/7b9e/work";
        let context = r#"context="system_u:object_r:container_file_t:s0:c37,c944""#;
        let text = format!("{layers},{dirs},,volatile,{context},uidmapping=:0:1000:1:1:110000:65536");
        let (settings, warnings) = mounts(&["/usr/bin/fuse-overlayfs", "-o", &text, "/s/overlay/7b9e/merged"]);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(settings.union.lowers.len(), 2);
        assert_eq!(settings.union.lowers[1], Source::from("/s/overlay/l/VCSPCB5VHNRLLCNTN5CWRTTGHT"));
        assert_eq!(settings.union.upper, Some("/s/overlay/7b9e/diff".into()));
        assert_eq!(settings.union.work, Some("/s/overlay/7b9e/work".into()));
        assert_eq!(settings.union.fsync, Fsync::Volatile);
        assert_eq!(settings.mount.context.as_deref(), Some("system_u:object_r:container_file_t:s0:c37,c944"));
        assert_eq!(settings.union.owners.uids, map(&[(0, 1000, 1), (1, 110_000, 65_536)]));
        assert!(settings.union.owners.gids.is_identity());
        assert_eq!(settings.mount.mountpoint, Path::new("/s/overlay/7b9e/merged"));
        assert_eq!(
            (settings.mount.fsname.as_str(), settings.mount.subtype.as_str()),
            ("fuse-overlayfs", "fuse-overlayfs")
        );
        assert!(!settings.foreground);

        let (settings, warnings) = mounts(&[
            "fuse-overlayfs",
            "-o",
            "lowerdir=l/AAAA:l/BBBB,upperdir=c/diff,workdir=c/work,,nodev,fsync=0,private",
            "c/merged",
        ]);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(settings.union.lowers, ["l/AAAA", "l/BBBB"].map(Source::from));
        assert!(settings.union.fsync == Fsync::Never && !settings.mount.dev);
        assert_eq!(settings.mount.propagation, Some(Propagation::Private));
    }

    #[test]
    fn what_mount_fuse3_and_mount8_pass_is_understood() {
        let line = ["unionfs-rs", "overlay", "/t", "-o", "ro,lowerdir=/a:/b,dev,suid"];
        let (settings, warnings) = mounts(&line);
        assert_eq!(warnings, [""; 0]);
        assert_eq!((settings.mount.fsname.as_str(), settings.mount.subtype.as_str()), ("overlay", "unionfs-rs"));
        assert!(settings.mount.read_only && settings.mount.dev && settings.mount.suid);

        let helper =
            ["/sbin/mount.fuse.unionfs-rs", "none", "/t", "-fsnv", "-o", "rw,lowerdir=/a", "-t", "fuse.unionfs-rs"];
        let Ok(Request::Mount { settings, warnings, fake: true }) = parse(&helper) else { panic!("it is fake") };
        assert_eq!((warnings.len(), settings.foreground), (0, false));
        assert_eq!((settings.mount.fsname.as_str(), settings.mount.subtype.as_str()), ("none", "unionfs-rs"));

        let helper = ["mount.fuse-overlayfs", "none", "/t", "-o", "lowerdir=/a", "-t", "fuse.fuse-overlayfs"];
        assert_eq!(mounts(&helper).0.mount.subtype, "fuse-overlayfs");
    }

    #[test]
    fn what_apptainer_passes_is_understood() {
        let (settings, warnings) =
            mounts(&["fuse-overlayfs", "-f", "-o", "allow_other,lowerdir=/l1:/l2,upperdir=/u,workdir=/w,noacl", "/t"]);
        assert_eq!(warnings, [""; 0]);
        assert!(settings.foreground && !settings.union.acls);
        assert_eq!(settings.mount.access, Access::All);
    }

    #[test]
    fn several_o_are_merged_and_the_last_one_holds() {
        let (settings, _) =
            mounts(&["unionfs-rs", "-o", "ro,lowerdir=a", "m", "-orw,fsname=x", "-o", "lowerdir+=b:c,upperdir=u"]);
        assert_eq!(settings.union.lowers, ["a", "b:c"].map(Source::from));
        assert!(!settings.mount.read_only);
        assert_eq!(settings.mount.fsname, "x");
        let (settings, _) = mounts(&["unionfs-rs", "source", "m", "-o", "fsname=x,subtype=y,lowerdir=a"]);
        assert_eq!((settings.mount.fsname.as_str(), settings.mount.subtype.as_str()), ("x", "y"));
        assert_eq!(mounts(&["fuse-overlayfs", "-o", "lowerdir=a,mountpoint=m"]).0.mount.mountpoint, Path::new("m"));
    }

    #[test]
    fn options_of_fuse_overlayfs_reach_their_places() {
        assert_eq!(silent("xattr_permissions=0").union.permissions, Permissions::Inode);
        assert_eq!(silent("xattr_permissions=1").union.permissions, Permissions::Security);
        assert_eq!(silent("xattr_permissions=2").union.permissions, Permissions::User);
        for (text, expected) in [
            ("", Fsync::Auto),
            ("fsync=1", Fsync::Auto),
            ("fsync=strict", Fsync::Strict),
            ("fsync=volatile", Fsync::Volatile),
            ("volatile", Fsync::Volatile),
            ("volatile,fsync=1", Fsync::Auto),
            ("volatile,fsync=0", Fsync::Volatile),
            ("fsync=0,volatile", Fsync::Volatile),
        ] {
            assert_eq!(silent(text).union.fsync, expected, "{text}");
        }
        assert_eq!(silent("writeback=1").mount.io, IoMode::Writeback);
        assert_eq!(silent("writeback=1,writeback=0").mount.io, IoMode::Auto);
        assert_eq!(silent("io=cached,writeback=0").mount.io, IoMode::Cached);
        // No mark that would refuse the upper once the system was started anew.
        assert_eq!(silent("fsync=0").union.fsync, Fsync::Never);
        let mount = silent("timeout=1.5").mount;
        let timeouts = [mount.entry_timeout, mount.attr_timeout, mount.negative_timeout];
        assert_eq!(timeouts, [Duration::from_millis(1500); 3]);
        assert_eq!(silent("").mount.attr_timeout, KEEP);
        assert_eq!(silent("threaded=0").mount.threads.map(std::num::NonZeroUsize::get), Some(1));
        assert_eq!(silent("threaded=1").mount.threads, None);
        assert!(!silent("noxattrs=1").union.xattrs && silent("noxattrs=0").union.xattrs);
        assert!(silent("static_nlink").union.static_nlink && silent("ino32_t").union.ino32);
        assert_eq!(silent("redirect_dir=on").union.redirect_dir, RedirectDir::On);
        for text in ["", "redirect_dir=off"] {
            assert_eq!(silent(text).union.redirect_dir, RedirectDir::Follow);
        }
        assert_eq!(silent("max_write=131072").mount.max_write.map(std::num::NonZeroU32::get), Some(131_072));
        assert!(silent("stats,log_file=/l").stats && !silent("").stats);
        let settings = silent("debug");
        assert!(settings.foreground && settings.log_level == Some(log::LevelFilter::Debug));
        let slave = silent("xino=off,index=off,metacopy=on,userxattr,rslave");
        assert_eq!((slave.mount.propagation, slave.union.index), (Some(Propagation::Slave), Some(false)));
    }

    #[test]
    fn squashing_to_an_id_wins_over_squashing_to_root() {
        for (text, uid, gid) in [
            ("squash_to_root", Some(0), Some(0)),
            ("squash_to_uid=7", Some(7), None),
            ("squash_to_uid=7,squash_to_root", Some(7), Some(0)),
            ("squash_to_root,squash_to_gid=8", Some(0), Some(8)),
        ] {
            let owners = silent(text).union.owners;
            assert_eq!((owners.squash_uid, owners.squash_gid), (uid, gid), "{text}");
        }
    }

    #[test]
    fn maps_are_read_in_every_way_that_they_are_written() {
        let expected = map(&[(0, 1000, 1), (1, 110_000, 65_536)]);
        for text in [
            "gidmapping=0:1000:1:1:110000:65536",
            "gidmapping=:0:1000:1:1:110000:65536",
            "gidmapping=0:1000:1,1:110000:65536",
            r"gidmapping=0:1000:1\,1:110000:65536",
            r#"gidmapping="0:1000:1,1:110000:65536""#,
        ] {
            let owners = silent(&format!("{text},ro")).union.owners;
            assert_eq!(owners.gids, expected, "{text}");
            assert!(owners.uids.is_identity());
        }
    }

    #[test]
    fn what_cannot_be_done_is_said_once_and_what_is_so_in_any_case_is_not() {
        let said = |text: &str| told(text).1;
        assert_eq!(said("bananas,bananas"), ["-o bananas: unknown option, which is ignored"]);
        assert_eq!(said("plugins=/x,plugins=/x"), ["-o plugins: ignored: layers are read from directories alone"]);
        assert_eq!(said("splice_read,auto_unmount").len(), 2);
        for text in ["writeback=0", "fast_ino=1", "big_writes,nonempty,kernel_cache", "defaults,_netdev,x-y=z,,"] {
            assert_eq!(said(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn no_option_is_in_two_tables() {
        let voids = VOIDS.iter().map(|void| void.name);
        let known = all().chain(TEXT_ONLY).chain(SPECS).map(|spec| spec.name);
        let mut names: Vec<&str> = known.chain(voids).chain(GRANTED.iter().copied()).collect();
        assert!(names.iter().all(|name| !is_for_others(name)));
        names.sort_unstable();
        for pair in names.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let of = |text: &str| refused(&["fuse-overlayfs", "-o", &format!("lowerdir=l,{text}"), "m"]);
        for (text, said) in [
            ("uidmapping=0:0:10:5:100:10", "overlap"),
            ("gidmapping=0:4294967295:1", "goes past"),
            ("uidmapping=0:4294967296:1", "-o uidmapping=0:4294967296:1: not a map"),
            ("uidmapping=0:1", "not a map"),
            ("uidmapping=0:1000:1,1:110000", "not a map"),
            ("uidmapping", "the value is missing"),
            ("squash_to_uid=root", "not the number of a user"),
            ("xattr_permissions=3", "give one of off, security, user, 0, 1, 2"),
            ("fsync=2", "give one of auto, strict, volatile, 0, 1"),
            ("noxattrs=yes", "give one of 0, 1"),
            ("timeout=-1", "not a number of seconds"),
            ("max_write=0", "not a whole number of bytes"),
            ("context=\"a", "has no end"),
            ("ro=1", "it takes no value"),
            ("upperdir=", "the path is empty"),
            ("subtype=a\\b", "not a name"),
        ] {
            let message = of(text);
            assert!(message.contains(said), "{text}: {message}");
        }
        for (line, said) in [
            (&["fuse-overlayfs", "m"][..], "no lower layer"),
            (&["fuse-overlayfs", "-o", "lowerdir=a"], "no mountpoint"),
            (&["fuse-overlayfs", "-o", "lowerdir=a::b", "m"], "element of the list is empty"),
            (&["fuse-overlayfs", "-o", "lowerdir=a", "s", "m", "n"], "n: one operand too many"),
            (&["fuse-overlayfs", "-o", "lowerdir=a", "s,suid", "m"], "s,suid: not a name"),
            (&["unionfs-rs", "--frob", "-o", "lowerdir=a", "m"], "--frob: unknown flag"),
            (&["unionfs-rs", "overlay", "m", "-o", "ro,relatime,remount,user_id=0"], "-o remount: "),
        ] {
            let message = refused(line);
            assert!(message.contains(said), "{line:?}: {message}");
        }
    }

    #[test]
    fn help_and_version_say_what_this_is() {
        let said = |line: &[&str]| match parse(line) {
            Ok(Request::Print(text)) => text,
            other => panic!("{line:?}: {other:?}"),
        };
        let version = said(&["fuse-overlayfs", "--version"]);
        assert_eq!(version, format!("unionfs-rs {} in place of fuse-overlayfs\n", env!("CARGO_PKG_VERSION")));
        assert_eq!(said(&["mount.unionfs-rs", "-V"]), format!("unionfs-rs {}\n", env!("CARGO_PKG_VERSION")));
        let help = said(&["fuse-overlayfs", "-h"]);
        for name in ["uidmapping", "timeout", "xattr_permissions", "squash_to_root", "lowerdir+"] {
            assert!(help.contains(&format!("{name},")) || help.contains(&format!("{name}\n")), "{name}: {help}");
        }
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }

    /// Words as somebody could write them who knows the options, and others.
    fn word() -> impl Strategy<Value = OsString> {
        let names: Vec<&str> = all().chain(TEXT_ONLY).chain(SPECS).map(|spec| spec.name).collect();
        let value = prop_oneof![
            "[0-9:,]{0,12}",
            proptest::sample::select(vec!["on", "off", "0", "1", "auto", "\"a,b\"", "/a:/b"]).prop_map(str::to_owned),
        ];
        let option =
            (proptest::sample::select(names), proptest::option::of(value)).prop_map(|(name, value)| match value {
                Some(value) => format!("{name}={value}"),
                None => name.to_owned(),
            });
        let options = proptest::collection::vec(option, 0..4).prop_map(|options| options.join(",").into());
        prop_oneof![
            3 => options,
            2 => proptest::sample::select(vec!["-o", "-f", "-d", "--", "-t", "-N", "-h", "-V", "m"]).prop_map(OsString::from),
            1 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(OsString::from_vec),
        ]
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(
            name in proptest::sample::select(vec!["fuse-overlayfs", "mount.x", "unionfs-rs"]),
            words in proptest::collection::vec(word(), 0..8),
        ) {
            let argv: Vec<OsString> = std::iter::once(name.into()).chain(words).collect();
            if let Some(Err(failure)) = read(&argv) {
                prop_assert_eq!(failure.exit, Exit::Usage);
                prop_assert!(!failure.message.is_empty());
            }
        }
    }
}
