//! The random sequences, a test for each configuration.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::{Just, Strategy};
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestError, TestRunner};
use unionfs_rs::config::{Lacking, Permissions, RedirectDir, WhiteoutFormat, XattrNamespace};

use super::run::{Script, play};
use super::stage::{Theatre, Variant};
use super::strategy::{Ingredients, any_variant, script};
use crate::support::{require_root, test_name};

/// Operations of a sequence at most.
const LENGTH: usize = 40;

/// Sequences for each test, where `PROPTEST_CASES` does not say: all tests together take a quarter of a minute.
const CASES: u32 = 200;

/// The usual sequences: a failure in CI is one that everybody can see.
const SEED: u64 = 0x0ddb_a115;

/// Sequences that failed once; every test tries them first.
const FAILED_ONCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/proptest-regressions.txt");

fn all_sequences_agree(scripts: impl Strategy<Value = (Variant, Script)>) {
    if !require_root("the layers hold devices, owners and trusted xattrs, and are on a tmpfs") {
        return;
    }
    // Both take their value from the environment where it is there.
    let set = |variable: &str| std::env::var_os(variable).is_some();
    let mut config = Config { max_shrink_iters: 20_000, max_shrink_time: 120_000, ..Config::default() };
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(FAILED_ONCE)));
    if !set("PROPTEST_CASES") {
        config.cases = CASES;
    }
    if !set("PROPTEST_RNG_SEED") {
        config.rng_seed = RngSeed::Fixed(SEED ^ hash(&test_name()));
    }
    let cases = config.cases;
    let theatre = Theatre::open();
    let changes = Cell::new(0);
    let outcome = TestRunner::new(config).run(&scripts, |(variant, script)| {
        let changed = play(&theatre, variant, &script).map_err(TestCaseError::fail)?;
        changes.set(changes.get() + changed);
        Ok(())
    });
    match outcome {
        Ok(()) => println!("{cases} sequences, in which {} operations changed something", changes.get()),
        Err(TestError::Fail(reason, (variant, script))) => panic!("{reason}\n{variant:?}\n{script:?}"),
        Err(TestError::Abort(reason)) => panic!("no sequence could be made: {reason}"),
    }
}

fn all_agree_in(variant: Variant, ingredients: Ingredients) {
    all_sequences_agree((Just(variant), script(ingredients, LENGTH)));
}

/// Makes the sequences of one test others than those of the next; the keys of this hasher never change.
fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

const LINKED: Ingredients = Ingredients { lower_links: true, restacks: false };

#[test]
fn sequences_with_the_defaults() {
    all_agree_in(Variant::DEFAULT, LINKED);
}

#[test]
fn sequences_with_whiteouts_by_xattr() {
    all_agree_in(Variant { whiteouts: WhiteoutFormat::Xattr, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_with_whiteouts_by_name() {
    all_agree_in(Variant { whiteouts: WhiteoutFormat::DotWh, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_without_redirects() {
    all_agree_in(Variant { redirect_dir: RedirectDir::Follow, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_without_an_index() {
    all_agree_in(Variant { index: false, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_with_user_xattrs() {
    all_agree_in(Variant { namespace: XattrNamespace::User, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_with_metacopy() {
    all_agree_in(Variant { metacopy: true, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_on_a_volatile_union() {
    all_agree_in(Variant { volatile: true, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_on_two_file_systems() {
    all_agree_in(Variant { two_filesystems: true, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_on_a_read_only_union() {
    all_agree_in(Variant { read_only: true, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_whose_upper_becomes_a_lower() {
    let restacked = Ingredients { lower_links: false, restacks: true };
    all_agree_in(Variant::DEFAULT, restacked);
    all_agree_in(Variant { metacopy: true, ..Variant::DEFAULT }, restacked);
    all_agree_in(Variant { whiteouts: WhiteoutFormat::Xattr, ..Variant::DEFAULT }, restacked);
    all_agree_in(Variant { whiteouts: WhiteoutFormat::DotWh, ..Variant::DEFAULT }, restacked);
}

#[test]
fn sequences_with_every_format_of_whiteouts_in_turn() {
    all_agree_in(Variant { rotate_whiteouts: true, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_with_owners_and_modes_in_xattrs() {
    for permissions in [Permissions::Security, Permissions::User] {
        all_agree_in(Variant { permissions, ..Variant::DEFAULT }, LINKED);
        let restacked = Ingredients { lower_links: false, restacks: true };
        all_agree_in(Variant { permissions, metacopy: true, ..Variant::DEFAULT }, restacked);
    }
}

#[test]
fn sequences_with_mapped_owners() {
    all_agree_in(Variant { mapped: true, ..Variant::DEFAULT }, LINKED);
}

/// What a file system lacks that knows no flags of renameat2(2): NFS, and most of FUSE.
const FLAGS: Lacking = Lacking::EXCHANGE.union(Lacking::NOREPLACE).union(Lacking::RENAME_WHITEOUT);

const RESTACKED: Ingredients = Ingredients { lower_links: false, restacks: true };

#[test]
fn sequences_without_flags_of_rename() {
    let variant = Variant { lacking: FLAGS, ..Variant::DEFAULT };
    all_agree_in(variant, LINKED);
    all_agree_in(Variant { metacopy: true, ..variant }, RESTACKED);
    all_agree_in(Variant { namespace: XattrNamespace::User, redirect_dir: RedirectDir::Follow, ..variant }, LINKED);
}

#[test]
fn sequences_without_flags_of_rename_in_every_second_mount() {
    // So that whiteouts of every form are met where they cannot be exchanged.
    let lacking = FLAGS | Lacking::TMPFILE;
    all_agree_in(Variant { lacking, lacks_in_turn: true, rotate_whiteouts: true, ..Variant::DEFAULT }, LINKED);
    all_agree_in(Variant { lacking, lacks_in_turn: true, ..Variant::DEFAULT }, RESTACKED);
}

#[test]
fn sequences_without_hard_links() {
    let variant = Variant { lacking: Lacking::LINKS, ..Variant::DEFAULT };
    all_agree_in(variant, LINKED);
    all_agree_in(Variant { whiteouts: WhiteoutFormat::Xattr, ..variant }, LINKED);
    all_agree_in(Variant { lacking: Lacking::LINKS | Lacking::NOREPLACE, ..variant }, LINKED);
}

#[test]
fn sequences_without_whiteout_devices() {
    all_agree_in(Variant { lacking: Lacking::NODES, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_without_xattrs_in_upper() {
    all_agree_in(Variant { lacking: Lacking::XATTRS, ..Variant::DEFAULT }, LINKED);
    all_agree_in(Variant { lacking: Lacking::XATTRS | Lacking::NODES, ..Variant::DEFAULT }, LINKED);
    all_agree_in(Variant { lacking: Lacking::XATTRS | FLAGS, ..Variant::DEFAULT }, LINKED);
}

#[test]
fn sequences_on_an_upper_that_lacks_everything() {
    let variant = Variant { lacking: Lacking::all(), ..Variant::DEFAULT };
    all_agree_in(variant, LINKED);
    all_agree_in(variant, RESTACKED);
    all_agree_in(Variant { volatile: true, ..variant }, LINKED);
}

#[test]
fn sequences_in_any_configuration() {
    all_sequences_agree(any_variant(LENGTH));
}

#[test]
fn sequences_without_the_calls_for_xattrs_by_directory_and_name() {
    // As on a kernel before 6.13, for the whole process: nothing but speed depends on it.
    unionfs_rs::sys::xattr::forget_at_calls();
    all_sequences_agree(any_variant(LENGTH));
}
