//! What a tree shows, as a tar that any tool reads: no layer, so nothing in it is a mark.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use super::stack::{Object, Stack};
use super::tar::PATH_MAX;
use super::tar::write::Writer;
use crate::error::{Error, Result};
use crate::layer::attr::FileKind;

/// Writes `object` to `out` as a tar in which it is called `name`; without a name, what is in it. Sockets are left out.
///
/// Errors: [`Error::Image`] with the path, and those of `out`.
pub fn write_tree(stack: &Stack, object: &Object, name: &[u8], out: impl Write) -> Result<()> {
    let out = io::BufWriter::with_capacity(256 * 1024, out);
    let mut tree = Tree { stack, writer: Writer::new(out), names: HashMap::new() };
    tree.add(name.to_vec(), object)?;
    tree.writer.finish().map(drop).map_err(|error| Error::image_io("tar", &error))
}

struct Tree<'a, W> {
    stack: &'a Stack,
    writer: Writer<W>,
    /// The first name of each file that has several.
    names: HashMap<((u32, u32), u64), Vec<u8>>,
}

impl<W: Write> Tree<'_, W> {
    fn add(&mut self, path: Vec<u8>, object: &Object) -> Result<()> {
        let attr = object.attr();
        if path.len() > PATH_MAX {
            return Err(Error::image(
                "tar",
                format!("has a path of more than {PATH_MAX} bytes, which nothing could unpack"),
            ));
        }
        let shown = String::from_utf8_lossy(&path).into_owned();
        let failed = |error: io::Error| Error::image_io(&shown, &error);
        match object {
            Object::File(..) if attr.kind == FileKind::Socket => log::info!("{shown}: a socket is left out"),
            Object::File(..) => {
                let (member, data) = self.stack.to_member(path.clone(), object)?;
                let first = if attr.nlink > 1 { self.names.get(&(attr.dev, attr.ino)).cloned() } else { None };
                match (first, data) {
                    (Some(link), _) => {
                        self.writer.append(&member.linked_to(link), io::empty()).map_err(failed)?;
                    }
                    (None, Some(data)) => self.writer.append(&member, data).map_err(failed)?,
                    (None, None) => self.writer.append(&member, io::empty()).map_err(failed)?,
                }
                if attr.nlink > 1 {
                    self.names.entry((attr.dev, attr.ino)).or_insert(path);
                }
            }
            Object::Dir(merged, _) => {
                if !path.is_empty() {
                    let (member, _) = self.stack.to_member([&path[..], b"/"].concat(), object)?;
                    self.writer.append(&member, io::empty()).map_err(failed)?;
                }
                for (name, object) in self.stack.list(merged)? {
                    let below = if path.is_empty() { Vec::new() } else { [&path[..], b"/"].concat() };
                    self.add([&below[..], name.as_bytes()].concat(), &object)?;
                }
            }
        }
        Ok(())
    }
}
