//! Limits: requests that panic, few descriptors, clients that never let go, floods of FORGETs, and signals that end a mount
//! under load.
//!
//! Environment: `UNIONFS_FULL=1` (100,000 files instead of 20,000).

mod support;

mod limits {
    pub mod descriptors;
    pub mod flushed;
    pub mod forgets;
    pub mod panics;
}
