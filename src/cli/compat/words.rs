//! The words of a command line in this form: which it is, and what are flags, options and operands.
//!
//! Three programs write it. Container runtimes start what they take for fuse-overlayfs; mount.fuse3 starts the
//! program that the type names, with the operands first; mount(8) starts a helper, mount.TYPE, whose flags are
//! mount(8)'s own: there `-f` is to do all but the mount.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::cli::exit::{Exit, Failure};

/// The name under which the command stands in for the other one.
pub const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// Who is taken to have written the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Who wants fuse-overlayfs.
    FuseOverlayfs,
    /// mount(8), of its helper for a type.
    Helper,
    /// Who wants unionfs-rs, in the words of fuse-overlayfs.
    Own,
}

/// A command line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// Whose it is.
    pub form: Form,
    /// What is no flag: `[SOURCE] MOUNTPOINT`.
    pub operands: Vec<OsString>,
    /// The text of each `-o`.
    pub options: Vec<OsString>,
    /// The type that mount(8) was given.
    pub kind: Option<OsString>,
    /// The flags without a value that were given.
    pub flags: Vec<Flag>,
}

/// A flag without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// To stay, and serve the mount.
    Foreground,
    /// To stay, and log much.
    Debug,
    /// To serve with one thread.
    Single,
    /// To do everything but the mount.
    Fake,
    /// To print the help.
    Help,
    /// To print the version.
    Version,
}

/// What a letter after a dash is.
enum Letter {
    Flag(Flag),
    /// mount(8)'s, of which nothing follows here.
    Nothing,
    Options,
    Kind,
    Namespace,
}

impl Form {
    /// Tells the form of a command line; `None` for that of subcommands.
    pub fn of(argv: &[OsString], is_command: impl Fn(&OsStr) -> bool) -> Option<Self> {
        let (program, arguments) = argv.split_first()?;
        let name = Path::new(program).file_name().unwrap_or_default();
        if name == FUSE_OVERLAYFS {
            return Some(Self::FuseOverlayfs);
        }
        if name.as_bytes().starts_with(b"mount.") {
            return Some(Self::Helper);
        }
        let first = arguments.first()?;
        // Also behind other letters, as in `-fo`.
        let is_options = |word: &[u8]| word.starts_with(b"-") && !word.starts_with(b"--") && word.contains(&b'o');
        let mut before = arguments.iter().take_while(|word| *word != "--");
        let has_options = before.any(|word| is_options(word.as_bytes()));
        let other = ["-h", "--help", "-V", "--version"].iter().any(|word| first == word) || is_command(first);
        (has_options && !other).then_some(Self::Own)
    }

    fn letter(self, letter: u8) -> Option<Letter> {
        match (self, letter) {
            (_, b'o') => Some(Letter::Options),
            (_, b'h') => Some(Letter::Flag(Flag::Help)),
            (_, b'V') => Some(Letter::Flag(Flag::Version)),
            (Self::Helper, b'f') => Some(Letter::Flag(Flag::Fake)),
            (Self::Helper, b's' | b'n' | b'v') => Some(Letter::Nothing),
            (Self::Helper, b't') => Some(Letter::Kind),
            (Self::Helper, b'N') => Some(Letter::Namespace),
            (_, b'f') => Some(Letter::Flag(Flag::Foreground)),
            (_, b'd') => Some(Letter::Flag(Flag::Debug)),
            (_, b's') => Some(Letter::Flag(Flag::Single)),
            _ => None,
        }
    }
}

impl Words {
    /// Takes the arguments after the program's name apart.
    pub fn read(form: Form, arguments: &[OsString]) -> Result<Self, Failure> {
        let mut words = Self { form, operands: Vec::new(), options: Vec::new(), kind: None, flags: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            match word.as_bytes() {
                b"--" => {
                    words.operands.extend(rest.cloned());
                    break;
                }
                [b'-', b'-', long @ ..] => words.flags.push(match long {
                    b"foreground" => Flag::Foreground,
                    b"debug" => Flag::Debug,
                    b"help" => Flag::Help,
                    b"version" => Flag::Version,
                    _ => return Err(unknown(word)),
                }),
                [b'-', letters @ ..] if !letters.is_empty() => words.short(word, letters, &mut rest)?,
                _ => words.operands.push(word.clone()),
            }
        }
        Ok(words)
    }

    /// Reads the letters of one word; the last one may take its value from the next word.
    fn short<'a>(
        &mut self,
        word: &OsStr,
        letters: &[u8],
        rest: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), Failure> {
        let mut letters = letters;
        while let Some((first, after)) = letters.split_first() {
            letters = after;
            let letter = self.form.letter(*first).ok_or_else(|| unknown(word))?;
            let wanted = match letter {
                Letter::Flag(flag) => {
                    self.flags.push(flag);
                    continue;
                }
                Letter::Nothing => continue,
                Letter::Options | Letter::Kind | Letter::Namespace => letter,
            };
            let value = if after.is_empty() { rest.next().cloned() } else { Some(OsString::from_vec(after.to_vec())) };
            let value = value.ok_or_else(|| usage(format!("{}: the value is missing", word.display())))?;
            match wanted {
                Letter::Kind => self.kind = Some(value),
                Letter::Namespace => {
                    let shown = value.display();
                    return Err(usage(format!("-N {shown}: not done here; run it by nsenter --mount={shown}")));
                }
                _ => self.options.push(value),
            }
            break;
        }
        Ok(())
    }

    /// Whether `flag` was given.
    pub fn has(&self, flag: Flag) -> bool {
        self.flags.contains(&flag)
    }

    /// Whether the mount is to be taken for one of fuse-overlayfs.
    pub fn is_fuse_overlayfs(&self) -> bool {
        let kind = self.kind.as_ref().is_some_and(|kind| kind == "fuse.fuse-overlayfs" || kind == FUSE_OVERLAYFS);
        self.form == Form::FuseOverlayfs || kind
    }
}

fn unknown(word: &OsStr) -> Failure {
    usage(format!("{}: unknown flag; --help lists them", word.display()))
}

fn usage(message: String) -> Failure {
    Failure::new(Exit::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(line: &str) -> Option<Form> {
        let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Form::of(&argv, |word| word == "mount" || word == "doctor")
    }

    #[test]
    fn the_name_decides_and_then_whether_there_is_an_o() {
        let table = [
            ("fuse-overlayfs", Some(Form::FuseOverlayfs)),
            ("/usr/bin/fuse-overlayfs --version", Some(Form::FuseOverlayfs)),
            ("/usr/bin/fuse-overlayfs mount", Some(Form::FuseOverlayfs)),
            ("/sbin/mount.fuse.unionfs-rs none /mnt", Some(Form::Helper)),
            ("unionfs-rs -o lowerdir=a m", Some(Form::Own)),
            ("unionfs-rs -f -olowerdir=a m", Some(Form::Own)),
            ("unionfs-rs overlay /mnt -o lowerdir=a", Some(Form::Own)),
            ("unionfs-rs", None),
            ("unionfs-rs mount -o lowerdir=a m", None),
            ("unionfs-rs doctor -o x", None),
            ("unionfs-rs --help -o x", None),
            ("unionfs-rs -V -o x", None),
            ("unionfs-rs a m", None),
            ("unionfs-rs a -- -o", None),
        ];
        for (line, expected) in table {
            assert_eq!(form(line), expected, "{line}");
        }
    }

    fn read(form: Form, line: &str) -> Result<Words, Failure> {
        Words::read(form, &line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_taken_apart_in_any_order() {
        let expected = |form, flags: &[Flag], options: &[&str], kind: Option<&str>, operands: &[&str]| {
            Ok(Words {
                form,
                operands: operands.iter().map(OsString::from).collect(),
                options: options.iter().map(OsString::from).collect(),
                kind: kind.map(OsString::from),
                flags: flags.to_vec(),
            })
        };
        let own = Form::Own;
        assert_eq!(
            read(own, "-f -o a,b --debug -oc m"),
            expected(own, &[Flag::Foreground, Flag::Debug], &["a,b", "c"], None, &["m"])
        );
        assert_eq!(read(own, "s m -o a"), expected(own, &[], &["a"], None, &["s", "m"]));
        assert_eq!(read(own, "-dfo a -- -m"), expected(own, &[Flag::Debug, Flag::Foreground], &["a"], None, &["-m"]));
        assert_eq!(read(own, "-o -f - m"), expected(own, &[], &["-f"], None, &["-", "m"]));
        let helper = Form::Helper;
        assert_eq!(
            read(helper, "s m -sf -n -v -o a -t fuse.x"),
            expected(helper, &[Flag::Fake], &["a"], Some("fuse.x"), &["s", "m"])
        );
    }

    #[test]
    fn flags_that_are_unknown_or_lack_a_value_are_refused() {
        for (form, line, said) in [
            (Form::Own, "-x m", "-x: unknown flag"),
            (Form::Own, "-fx m", "-fx: unknown flag"),
            (Form::Own, "--fork m", "--fork: unknown flag"),
            (Form::Own, "m -o", "-o: the value is missing"),
            (Form::FuseOverlayfs, "-t x m", "-t: unknown flag"),
            (Form::Helper, "-N /proc/1/ns/mnt s m", "nsenter --mount=/proc/1/ns/mnt"),
        ] {
            let failure = read(form, line).expect_err(line);
            assert!(failure.exit == Exit::Usage && failure.message.contains(said), "{line}: {failure}");
        }
    }
}
