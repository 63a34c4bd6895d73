//! The control socket of a mount: `unionfs-rs status` asks there what the daemon knows.
//!
//! It is a unix socket in a directory that only who mounted can enter (`place`), named for the device of the mount: that
//! number is one mount's alone as long as the mount is there, in every mount namespace and wherever the mount is moved or
//! bound to, and it is read from the table of mounts, for which nobody asks the daemon. One thread of the daemon answers
//! (`serve`), one client after another, a line for a line; nothing of it is on the way of a request, and a mount that has no
//! socket is served as any other.
//!
//! The words: a client sends `status FORM` and a line break; the answer is `ok LENGTH` or `error MESSAGE`, a line break, and
//! after `ok` so many bytes. The daemon writes the forms itself, so that a client of another version shows them whole.

mod ask;
mod place;
mod serve;

pub use ask::ask;
pub use place::Place;
pub use serve::Control;

/// The longest line that a client may send.
const LINE_MAX: usize = 64;

/// Returns the name of the socket of the mount with the device `(major, minor)`.
fn socket_name((major, minor): (u32, u32)) -> String {
    format!("{major}:{minor}.sock")
}
