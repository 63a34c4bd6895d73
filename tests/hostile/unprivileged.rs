//! The whole suite once more, as those who are not root: what applies to them holds for them.

use crate::support::{Who, suite_as};

#[test]
fn everything_that_applies_holds_for_a_plain_user_through_fusermount3() {
    suite_as(Who::PlainUser);
}

#[test]
fn everything_that_applies_holds_for_root_of_a_user_namespace() {
    suite_as(Who::NamespaceRoot);
}
