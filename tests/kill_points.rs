//! The kill-point matrix: whatever ends an operation, and whenever, the union is the one before it or the one after it.
//!
//! Each operation is done in a process of its own, on layers of its own, under strace(1). First the process is killed
//! before each call that changes something; then, anew, each system call of the operation fails once, by every errno of a
//! list. Afterwards a new mount shows the old union or the new one, the lowers are what they were, and no workdir keeps what
//! was unfinished. Where a call has failed, moreover, an error leaves the old union and success the new one, for the
//! process itself too, and no descriptor is lost.
//!
//! Environment: `UNIONFS_POINTS` (`all`; else every 8th point, and one errno at each), `UNIONFS_POINTS_CASE` (a part of
//! the name of the operations that are tried).

mod support;

#[allow(dead_code, reason = "the tests of nfs_like use the rest")]
#[path = "nfs_like/acts.rs"]
mod acts;

mod kill_points {
    pub mod cases;
    pub mod look;
    pub mod matrix;
    pub mod mounted;
    pub mod subject;
}
