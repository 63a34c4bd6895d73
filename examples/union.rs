//! A union without a mount: its layers as one tree, in this process alone.
//!
//! ```text
//! cargo run --example union -- LOWER[:LOWER...] UPPER list DIRECTORY
//! cargo run --example union -- LOWER[:LOWER...] UPPER read FILE
//! cargo run --example union -- LOWER[:LOWER...] UPPER write FILE TEXT
//! ```
//!
//! The lowers are named topmost first. Paths are those of the union: `/etc/hostname`. A file that is written is made
//! where it is missing, and copied to UPPER first where a lower has it; the lowers never change.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;
use unionfs_rs::union::{Caller, Entry, FileKind, Flow, Name, New, SetAttr, Union};

const USAGE: &str = "usage: union LOWER[:LOWER...] UPPER (list DIRECTORY | read FILE | write FILE TEXT)";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("union: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> Result<(), Box<dyn Error>> {
    let [lowers, upper, verb, path, text @ ..] = arguments else { return Err(USAGE.into()) };
    let union = Union::builder().lowers(std::env::split_paths(lowers)).upper(upper).build()?;
    let path = Path::new(path);
    let done = match (verb.to_str(), text) {
        (Some("list"), []) => list(&union, path),
        (Some("read"), []) => read(&union, path),
        (Some("write"), [text]) => write(&union, path, text.as_bytes()),
        _ => Err(USAGE.into()),
    };
    // Leaves nothing unfinished in the workdir, which is beside upper where none is named.
    union.end()?;
    done.map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Prints the number, the kind and the name of each entry.
fn list(union: &Union, path: &Path) -> Result<(), Box<dyn Error>> {
    let directory = union.lookup_path(path)?;
    let mut out = std::io::stdout().lock();
    let mut printed = Ok(());
    // From cookie 0, the beginning; a reader that has no more room goes on later from an entry's cookie.
    union.read_dir(directory.id, 0, |entry| {
        printed = writeln!(out, "{:>20}  {:<9}  {}", entry.ino, format!("{:?}", entry.kind), entry.name.display());
        if printed.is_ok() { Flow::More } else { Flow::Full }
    })?;
    union.forget(directory.id, 1);
    Ok(printed?)
}

/// Copies a file to the standard output.
fn read(union: &Union, path: &Path) -> Result<(), Box<dyn Error>> {
    let file = union.lookup_path(path)?;
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        match union.read(file.id, offset, &mut buffer)? {
            0 => break,
            read => {
                out.write_all(&buffer[..read])?;
                offset += read as u64;
            }
        }
    }
    // What was looked up is given back, so that the union need not remember it.
    union.forget(file.id, 1);
    Ok(())
}

/// Makes `text` and a line break the contents of a file.
fn write(union: &Union, path: &Path, text: &[u8]) -> Result<(), Box<dyn Error>> {
    let file = match union.lookup_path(path) {
        Ok(file) => file,
        Err(error) if error.errno() == Errno::NOENT => create(union, path)?,
        Err(error) => return Err(error.into()),
    };
    if file.attr.kind != FileKind::Regular {
        return Err(format!("is no regular file but a {:?}", file.attr.kind).into());
    }
    // Cut off first: then no data is copied up that is about to be dropped.
    union.setattr(file.id, SetAttr { size: Some(0), ..SetAttr::default() }, None, Caller::current())?;
    union.write(file.id, 0, &[text, b"\n"].concat(), None)?;
    union.fsync(file.id, None, false)?;
    union.forget(file.id, 1);
    Ok(())
}

fn create(union: &Union, path: &Path) -> Result<Entry, Box<dyn Error>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err("names no file".into()) };
    let parent = union.lookup_path(parent)?;
    let made = union.create(parent.id, Name::new(name)?, New::Regular, 0o666, 0o022, Caller::current())?;
    union.forget(parent.id, 1);
    Ok(made)
}
