//! What becomes of a union whose upper is on a disk that fails: that goes down at any moment, is full, at its quota, cannot
//! be written any more, or is gone.
//!
//! Environment: `UNIONFS_SHUTDOWNS` (how often each file system goes down under load, 3).

mod support;

mod disk {
    pub mod ground;
    pub mod refusing;
    pub mod shutdown;
}
