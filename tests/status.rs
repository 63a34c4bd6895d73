//! `unionfs-rs status`: each field against what was done, who may ask, and what is said where nobody answers.

mod support;

mod status {
    mod asking;
    mod figures;
    mod prometheus;
    mod users;
}
