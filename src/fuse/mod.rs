//! The FUSE front end: mounting, the protocol, threads and teardown.
//!
//! A request is decoded, makes one call into the union, and is answered; no policy lives here.

mod affinity;
mod answer;
mod complaints;
mod confine;
mod connection;
mod convert;
mod dev;
mod device;
mod halt;
mod handshake;
mod linger;
mod passthrough;
mod pool;
mod protocol;
mod request;
mod ring;
mod serve;
mod server;
mod session;
mod statistics;
mod status;
mod unmounter;
mod walk;

pub use session::{Mount, MountHandle};
pub use statistics::{Operation, Requests, Statistics};
pub use status::{Observer, Status};
pub use unmounter::Unmounter;
