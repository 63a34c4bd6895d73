//! Where layers and operations come from.

use proptest::prelude::*;
use proptest::sample::select;
use unionfs_rs::config::{Lacking, Permissions, RedirectDir, WhiteoutFormat, XattrNamespace};

use super::layers::{Layer, Marks, Space, Thing};
use super::op::{At, End, Make, Op, Open, Set, Who};
use super::run::Script;
use super::stage::Variant;

/// The names that everything is made of: few, so that layers and operations meet.
pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Sizes of files: none, some, and more than a block.
const SIZES: [usize; 4] = [0, 1, 100, 5000];

const MODES: [u32; 6] = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o2644];

const DIR_MODES: [u32; 4] = [0o755, 0o700, 0o1777, 0o2775];

/// Xattrs that a program may set: its own, and two that look like the overlay's.
const KEYS: [&str; 4] = ["user.k", "trusted.k", "user.overlay.opaque", "trusted.overlay.whiteout"];

/// What a test wants its sequences to be made of.
#[derive(Clone, Copy, Debug)]
pub struct Ingredients {
    /// Files with several names in the lower layers.
    pub lower_links: bool,
    /// Remounts that put the upper under a fresh one.
    pub restacks: bool,
}

/// Makes sequences of up to `length` operations.
pub fn script(ingredients: Ingredients, length: usize) -> impl Strategy<Value = Script> {
    let lowers = prop::collection::vec(layer(ingredients), 1..=3);
    let ops = prop::collection::vec(op(ingredients.restacks), 1..=length);
    (lowers, any::<bool>(), ops).prop_map(|(lowers, forgetful, ops)| Script { lowers, forgetful, ops })
}

/// Makes configurations of every kind, each with sequences that it may go with.
pub fn any_variant(length: usize) -> impl Strategy<Value = (Variant, Script)> {
    let redirects = select(&[RedirectDir::On, RedirectDir::Follow, RedirectDir::NoFollow][..]);
    let namespaces = select(&[XattrNamespace::Trusted, XattrNamespace::User][..]);
    let whiteouts = select(&[WhiteoutFormat::Char, WhiteoutFormat::Xattr, WhiteoutFormat::DotWh][..]);
    let permissions = select(&[Permissions::Inode, Permissions::Inode, Permissions::Security, Permissions::User][..]);
    let switches = prop::array::uniform7(any::<bool>());
    // Nothing in half of the cases, else anything.
    let lacking = prop_oneof![Just(Lacking::empty()), any::<u8>().prop_map(Lacking::from_bits_truncate)];
    let chosen = (redirects, namespaces, whiteouts, permissions, switches, lacking);
    chosen.prop_flat_map(move |(redirect_dir, namespace, whiteouts, permissions, switches, lacking)| {
        let [index, metacopy, volatile, rotate_whiteouts, two_filesystems, restacks, mapped] = switches;
        // What cannot be had there is refused when it is asked for.
        let marks = !lacking.contains(Lacking::XATTRS);
        let any_whiteouts = !lacking.intersects(Lacking::EXCHANGE | Lacking::XATTRS | Lacking::NODES);
        let variant = Variant {
            read_only: false,
            redirect_dir: if marks || redirect_dir != RedirectDir::On { redirect_dir } else { RedirectDir::Auto },
            index,
            metacopy: metacopy && marks,
            volatile,
            namespace,
            whiteouts: if any_whiteouts { whiteouts } else { WhiteoutFormat::Auto },
            rotate_whiteouts: rotate_whiteouts && any_whiteouts,
            two_filesystems,
            permissions,
            mapped,
            lacking,
            lacks_in_turn: false,
        };
        // Links of a lower layer are kept by an index, which does not come along when the upper is stacked.
        let ingredients = Ingredients { lower_links: !restacks, restacks };
        (Just(variant), script(ingredients, length))
    })
}

fn path() -> impl Strategy<Value = String> {
    let parts = |count| prop::collection::vec(select(&NAMES[..]), count).prop_map(|parts| parts.join("/"));
    prop_oneof![4 => parts(1), 4 => parts(2), 2 => parts(3)]
}

fn layer(ingredients: Ingredients) -> impl Strategy<Value = Layer> {
    let space = select(&[Space::Trusted, Space::User][..]);
    let marks = prop_oneof![
        3 => space.clone().prop_map(Marks::Char),
        1 => space.prop_map(Marks::Xattr),
        1 => Just(Marks::DotWh),
    ];
    let link_count = if ingredients.lower_links { 0..=3 } else { 0..=0 };
    let links = prop::collection::vec((path(), path()), link_count);
    (marks, prop::collection::vec((path(), thing()), 1..=10), links).prop_map(|(marks, things, links)| Layer {
        marks,
        things,
        links,
    })
}

fn thing() -> impl Strategy<Value = Thing> {
    let owner = || select(&[0u32, 0, 1000][..]);
    let file = (select(&SIZES[..]), b'l'..=b'p', select(&MODES[..]), owner());
    let dir = || (select(&DIR_MODES[..]), owner());
    prop_oneof![
        6 => file.prop_map(|(len, fill, mode, owner)| Thing::File { len, fill, mode, owner }),
        6 => dir().prop_map(|(mode, owner)| Thing::Dir { mode, owner }),
        2 => dir().prop_map(|(mode, owner)| Thing::OpaqueDir { mode, owner }),
        1 => select(&["b", "/nowhere"][..]).prop_map(Thing::Symlink),
        1 => Just(Thing::Fifo),
        1 => Just(Thing::Device),
        3 => Just(Thing::Whiteout),
    ]
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![3 => path().prop_map(At::Path), 1 => (0usize..8).prop_map(At::Held)]
}

fn who() -> impl Strategy<Value = Who> {
    select(&[Who::Root, Who::Root, Who::User][..])
}

fn make() -> impl Strategy<Value = Make> {
    prop_oneof![
        8 => Just(Make::Regular),
        8 => Just(Make::Directory),
        2 => Just(Make::Symlink),
        1 => Just(Make::Fifo),
        1 => Just(Make::Socket),
        1 => Just(Make::Device),
        1 => Just(Make::Whiteout),
    ]
}

/// A path to make something at, now and then one whose name is not allowed.
fn new_path() -> impl Strategy<Value = String> {
    prop_oneof![20 => path(), 1 => Just(".wh.a".to_owned()), 1 => Just("a/.wh.b".to_owned())]
}

fn offset() -> impl Strategy<Value = usize> {
    select(&[0usize, 1, 50, 4096, 6000][..])
}

fn op(restacks: bool) -> impl Strategy<Value = Op> {
    let len = || select(&[0usize, 1, 10, 5000][..]);
    let fill = || b'A'..=b'E';
    let flags = prop_oneof![6 => Just(0u32), 1 => Just(1), 3 => Just(2), 2 => Just(4), 1 => Just(5), 1 => Just(3)];
    let ends: &[End] = if restacks { &[End::Clean, End::Restack, End::Restack] } else { &[End::Clean, End::Crash] };
    let owner = || prop::option::of(select(&[0u32, 1000, 77][..]));
    let names = prop_oneof![
        10 => (new_path(), make(), select(&[0o644u32, 0o755, 0o6777, 0o1777][..]), select(&[0u32, 0o022, 0o077][..]), who())
            .prop_map(|(path, make, mode, umask, who)| Op::Create { path, make, mode, umask, who }),
        1 => (0usize..8, select(&NAMES[..]), make())
            .prop_map(|(held, name, make)| Op::CreateIn { held, name: name.to_owned(), make }),
        8 => path().prop_map(Op::Unlink),
        6 => path().prop_map(Op::Rmdir),
        14 => (path(), new_path(), flags).prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        5 => (at(), new_path()).prop_map(|(of, to)| Op::Link { of, to }),
    ];
    let files = prop_oneof![
        6 => (at(), offset(), len(), fill(), who())
            .prop_map(|(at, offset, len, fill, who)| Op::Write { at, offset, len, fill, who }),
        4 => (at(), offset(), who()).prop_map(|(at, size, who)| Op::Truncate { at, size, who }),
        1 => (at(), any::<bool>(), offset(), 1usize..6000)
            .prop_map(|(at, punch, offset, len)| Op::Allocate { at, punch, offset, len }),
        1 => (at(), at(), offset(), offset(), 1usize..6000)
            .prop_map(|(from, to, from_offset, to_offset, len)| Op::CopyRange { from, to, from_offset, to_offset, len }),
        4 => (at(), select(&MODES[..])).prop_map(|(at, mode)| Op::Chmod { at, mode }),
        3 => (at(), owner(), owner()).prop_map(|(at, uid, gid)| Op::Chown { at, uid, gid }),
        2 => (at(), 1i64..1000).prop_map(|(at, secs)| Op::Utimes { at, secs }),
        4 => (at(), select(&KEYS[..]), select(&[0usize, 3, 300][..]), select(&[Set::Any, Set::Create, Set::Replace][..]))
            .prop_map(|(at, key, len, how)| Op::SetXattr { at, key, len, how }),
        1 => (at(), select(&KEYS[..])).prop_map(|(at, key)| Op::RemoveXattr { at, key }),
    ];
    let references = prop_oneof![
        6 => path().prop_map(Op::Hold),
        3 => (0usize..8).prop_map(Op::Forget),
        2 => Just(Op::ForgetAll),
        4 => (at(), select(&[Open::Read, Open::Write, Open::Truncate][..])).prop_map(|(at, how)| Op::Open { at, how }),
        2 => (0usize..4).prop_map(Op::Close),
        4 => (0usize..4, offset(), len(), fill(), who())
            .prop_map(|(handle, offset, len, fill, who)| Op::WriteHandle { handle, offset, len, fill, who }),
        2 => (0usize..4, offset()).prop_map(|(handle, size)| Op::TruncateHandle { handle, size }),
        2 => (path(), 0usize..5).prop_map(|(path, entries)| Op::ListSome { path, entries }),
        2 => (0usize..4).prop_map(Op::ListRest),
        2 => select(ends).prop_map(Op::Remount),
    ];
    prop_oneof![4 => names, 3 => files, 3 => references]
}
