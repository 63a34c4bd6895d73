//! Uppers like NFS: without the flags of renameat2(2), and without much else.
//!
//! Real ones of that kind are FUSE file systems (bindfs, mergerfs), for the machine at hand may have no NFS. On each a
//! scenario is played beside the same steps in a plain directory. And the sequences of more than one step that stand in
//! for one rename are killed before each of their system calls.

mod support;

mod nfs_like {
    #[allow(dead_code, reason = "the kill points use the rest")]
    pub mod acts;
    pub mod killed;
    pub mod steps;
    pub mod uppers;
}
