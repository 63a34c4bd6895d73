bitflags::bitflags! {
    /// What upper's file system is taken to lack, whatever it can do: for tests of what is done without.
    #[doc(hidden)]
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Lacking: u8 {
        /// RENAME_EXCHANGE.
        const EXCHANGE = 1;
        /// RENAME_NOREPLACE.
        const NOREPLACE = 1 << 1;
        /// RENAME_WHITEOUT.
        const RENAME_WHITEOUT = 1 << 2;
        /// O_TMPFILE.
        const TMPFILE = 1 << 3;
        /// Hard links.
        const LINKS = 1 << 4;
        /// Overlay xattrs.
        const XATTRS = 1 << 5;
        /// Character devices as whiteouts.
        const NODES = 1 << 6;
    }
}
