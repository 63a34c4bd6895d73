//! The check of an upper against its lowers: nothing is found where nothing is wrong, and what is made wrong by hand is
//! found, repaired, and then gone, with all else as it was.

mod support;

mod fsck {
    mod clean;
    mod cli;
    pub mod damage;
    mod hostile;
    mod links;
    mod marks;
    mod whiteouts;
    mod work;
    pub mod workload;
}
