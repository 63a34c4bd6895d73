//! How long an operation may take.

/// What became of a quick attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It is done.
    Done,
    /// Nothing is done: it takes long, since data must be copied up first or a directory be emptied.
    Long,
}

/// Whether an operation may take long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// It may.
    Any,
    /// It gives up where it would.
    Quick,
}

/// How often an operation looks at its names anew because others changed them while it copied up.
pub(super) const ATTEMPTS: usize = 100;
