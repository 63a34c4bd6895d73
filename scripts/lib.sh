# shellcheck shell=bash
# What the scripts share: saying things, installing what is missing, a cache outside the checkout,
# and clean-up that cannot hang. Sourced after `set -euo pipefail`.

root_dir=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# ---- saying things -------------------------------------------------------------------------------

# shellcheck disable=SC2034  # some of these are used by the scripts that source this one
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
else
    bold='' green='' red='' dim='' plain=''
fi

step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
ok() { printf '   %sok%s   %s\n' "$green" "$plain" "$*"; }
die() {
    printf '%s%s: %s%s\n' "$red" "${0##*/}" "$*" "$plain" >&2
    exit 1
}

# ---- where things are kept -----------------------------------------------------------------------

# A cron job or a CI runner may have no HOME, or one that cannot be written. cargo asks the password
# database then, and so does this.
home_dir=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
cache_dir=${XDG_CACHE_HOME:-$home_dir/.cache}/unionfs-rs
export PATH="${CARGO_HOME:-$home_dir/.cargo}/bin:$PATH"
# The sbin directories hold mkfs and losetup, and a plain user's PATH on Debian lacks them.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
# Messages are matched and names are sorted below: one locale for everyone, and one that holds UTF-8.
export LC_ALL=C.UTF-8

make_cache_dir() {
    if mkdir -p "$cache_dir" 2>/dev/null && [ -w "$cache_dir" ]; then return 0; fi
    # Only a directory of our own there: what lies in it is unpacked and run as root.
    local other
    other=/var/tmp/unionfs-rs-cache-$(id -u)
    if { [ -d "$other" ] || mkdir -m 0700 "$other"; } && [ -O "$other" ] && [ ! -L "$other" ]; then
        cache_dir=$other
        return 0
    fi
    die "neither $cache_dir nor $other can be written: set XDG_CACHE_HOME to a directory that can"
}
make_cache_dir

# Runs a command while no other script holds the lock of that name: two runs at once must not build
# the same thing into the cache, nor fight for dpkg's own lock.
locked() {
    local name=$1
    shift
    (
        exec 9>"$cache_dir/$name.lock"
        flock -w 1800 9 || die "another run holds $cache_dir/$name.lock since half an hour"
        "$@"
    )
}

# ---- installing ----------------------------------------------------------------------------------

# need_packages WHAT=PACKAGE...: installs the packages whose WHAT is missing: a command, or a path.
need_packages() {
    local pair what missing=()
    for pair in "$@"; do
        what=${pair%%=*}
        case $what in
        /*) [ -e "$what" ] || missing+=("${pair#*=}") ;;
        *) command -v "$what" >/dev/null || missing+=("${pair#*=}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    local as_root=()
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]} (Debian's package names), and there is no apt-get: install them with this system's package manager"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "missing: ${missing[*]}. As root: apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing with apt-get: ${missing[*]}"
    locked apt apt_install "${missing[@]}"
}

apt_install() {
    local log
    log=$(mktemp)
    # The lists may be weeks old, and then name versions that the mirror no longer has. A source that
    # does not answer must not stop the others, so only the installation's own failure counts.
    "${as_root[@]}" apt-get update >"$log" 2>&1 || say "apt-get update was not clean; going on with the lists there are"
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >>"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: $*"
    fi
    rm -f "$log"
}

need_cargo() {
    command -v cargo >/dev/null ||
        die "cargo is not installed. Install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root_dir/Cargo.toml") or later from https://rustup.rs and run this again"
    need_packages cc=gcc /usr/include/stdio.h=libc6-dev
}

# need_cargo_tool NAME VERSION COMMAND...: installs a tool from crates.io unless COMMAND works already; whatever
# version that is stays, but for a test suite, whose version says what is tested.
need_cargo_tool() {
    local name=$1 version=$2 printed
    shift 2
    if printed=$("$@" 2>/dev/null | head -n 1) && [ -n "$printed" ]; then
        case $name in
            pjdfstest | fsx) [[ " $printed " == *" $version "* ]] && return 0 ;;
            *) return 0 ;;
        esac
    fi
    say "installing with cargo: $name $version (built from source, once)"
    local log
    log=$(mktemp)
    # A target directory of its own: the tools' dependencies must not be rebuilt with this checkout's
    # flags, nor fill its target/.
    if ! env -u CARGO_TARGET_DIR -u RUSTFLAGS cargo install --quiet --locked --force "$name@$version" >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "cargo could not install $name $version"
    fi
    rm -f "$log"
}

target_dir() {
    cargo metadata --format-version 1 --no-deps --locked --manifest-path "$root_dir/Cargo.toml" |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# Gives the fuzzers, a crate of their own, the versions of everything else: cargo adds what they need besides.
lock_fuzzers() {
    [ ! "$root_dir/Cargo.lock" -nt "$root_dir/fuzz/Cargo.lock" ] || cp "$root_dir/Cargo.lock" "$root_dir/fuzz/Cargo.lock"
}

# Sets `bin` to the release binary, built unless UNIONFS_RS_BIN names one.
build_release() {
    if [ -n "${UNIONFS_RS_BIN:-}" ]; then
        [ -x "$UNIONFS_RS_BIN" ] || die "UNIONFS_RS_BIN=$UNIONFS_RS_BIN is not a program"
        bin=$(realpath -- "$UNIONFS_RS_BIN")
        return 0
    fi
    need_cargo
    cargo build --release --locked --manifest-path "$root_dir/Cargo.toml" || die "the release build failed"
    bin=$(target_dir)/release/unionfs-rs
    [ -x "$bin" ] || die "cargo built no $bin"
}

# ---- FUSE over io_uring --------------------------------------------------------------------------

ring_switch=/sys/module/fuse/parameters/enable_uring

# ring_obstacle: says why no mount can have its requests by io_uring here; nothing where it can.
ring_obstacle() {
    if [ ! -e "$ring_switch" ]; then
        echo "the kernel has no FUSE over io_uring (Linux 6.14, CONFIG_FUSE_IO_URING)"
    elif [ "$(cat "$ring_switch")" != Y ] && [ "$(id -u)" != 0 ]; then
        echo "FUSE over io_uring is off, and only root can turn it on (echo Y >$ring_switch)"
    fi
}

# with_ring COMMAND...: turns FUSE over io_uring on for as long as the command runs.
with_ring() {
    local before status=0
    before=$(cat "$ring_switch")
    [ "$before" = Y ] || { say "turning FUSE over io_uring on for this ($ring_switch)" && echo Y >"$ring_switch"; }
    "$@" || status=$?
    [ "$before" = Y ] || echo "$before" >"$ring_switch"
    return "$status"
}

# ---- a real root filesystem ----------------------------------------------------------------------

debian_suite=bookworm

# debian_root VARIANT [NAME PACKAGE,...]: sets `debian_tar` to a tar of a small Debian root with python3, or with
# these packages, made once and kept in the cache. The variant is mmdebstrap's: `essential`, or `apt` for one that
# can install packages itself.
debian_root() {
    local variant=$1 name=${2:-python3} packages=${3:-python3-minimal}
    debian_tar=$cache_dir/debian-$debian_suite-$variant-$name.tar
    need_packages mmdebstrap=mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg=debian-archive-keyring
    [ -s "$debian_tar" ] || locked debian-root make_debian_root "$variant" "$packages"
    say "Debian root: $debian_tar ($(du -h "$debian_tar" | cut -f1))"
}

make_debian_root() {
    # Another run may have made it while this one waited for the lock.
    [ ! -s "$debian_tar" ] || return 0
    say "making a Debian root with mmdebstrap (about half a minute, once)"
    local log
    log=$(mktemp)
    # Published by rename: a tar cut short by Ctrl-C or a full disk is never taken for a whole one.
    if ! mmdebstrap --variant="$1" --include="$2" --format=tar "$debian_suite" - \
        >"$debian_tar.part" 2>"$log" </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log" "$debian_tar.part"
        die "mmdebstrap failed"
    fi
    rm -f "$log"
    mv "$debian_tar.part" "$debian_tar"
}

# unpack_root TAR DIR: unpacks with owners, modes, devices and xattrs as they are in the archive.
unpack_root() {
    mkdir -p "$2"
    tar -x -f "$1" -C "$2" --numeric-owner --same-owner --same-permissions --xattrs --xattrs-include='*'
}

# download_packages ROOT DEBS PACKAGE...: downloads the packages, and what they need and ROOT lacks, into DEBS, once.
# Chosen by the host's apt for the root's release: the sources and the list of installed packages are the root's,
# so that the host may be of another release.
download_packages() {
    local root=$1 debs=$2 apt status=0
    shift 2
    ! compgen -G "$debs/*.deb" >/dev/null || return 0
    say "downloading $* and what they depend on"
    apt=$(mktemp -d)
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    cp "$root/var/lib/dpkg/status" "$apt/status"
    local options=(
        -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
        -o Dir::Etc::SourceList="$root/etc/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
        -o APT::Architecture="$(cat "$root/var/lib/dpkg/arch" 2>/dev/null || dpkg --print-architecture)"
        -o APT::Sandbox::User=root -o Debug::NoLocking=true
    )
    if {
        apt-get "${options[@]}" update &&
            apt-get "${options[@]}" install -y --no-install-recommends --download-only "$@"
    } >"$apt/log" 2>&1 </dev/null; then
        mkdir -p "$debs.part.$$"
        mv "$apt"/cache/archives/*.deb "$debs.part.$$/"
        # A run beside this one may have been first; its files are the same ones.
        mv -T "$debs.part.$$" "$debs" 2>/dev/null || rm -rf "$debs.part.$$"
    else
        tail -n 20 "$apt/log" >&2
        status=1
    fi
    rm -rf "$apt"
    return $status
}

# tree_sum DIR: one checksum of a whole tree: names, contents, types, modes, owners, xattrs, ACLs, link
# structure and times. The change times are summed too: nobody can set them back, so an equal sum
# says that nothing was written in between, not even something that was undone.
tree_sum() {
    {
        tar -c -f - -C "$1" --sort=name --format=posix --numeric-owner --xattrs --xattrs-include='*' --acls \
            --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime .
        (cd "$1" && find . -printf '%P %y %i %n %s %T@ %C@\0' | LC_ALL=C sort -z)
    } | sha256sum | cut -d' ' -f1
}

# ---- mounts --------------------------------------------------------------------------------------

# As the kernel writes a path in mountinfo.
mountinfo_path() {
    local path=${1//\\/\\134}
    path=${path// /\\040}
    path=${path//$'\t'/\\011}
    printf '%s' "${path//$'\n'/\\012}"
}

# mounts_below DIR: the mountpoints at and below DIR, the deepest first, as mountinfo writes them. Read
# from mountinfo and not with stat: asking a hung mount hangs.
mounts_below() {
    TOP=$(mountinfo_path "$1") awk '
        $5 == ENVIRON["TOP"] || index($5, ENVIRON["TOP"] "/") == 1 { line[++n] = $5 }
        END { while (n > 0) print line[n--] }' /proc/self/mountinfo
}

is_mounted() {
    POINT=$(mountinfo_path "$1") awk '$5 == ENVIRON["POINT"] { found = 1 } END { exit !found }' /proc/self/mountinfo
}

# fuse_daemons DIR: the processes that serve a FUSE mount below DIR: those whose command line names a
# path below it and that hold /dev/fuse open.
fuse_daemons() {
    local proc pid
    for proc in /proc/[0-9]*; do
        pid=${proc#/proc/}
        [ "$pid" != $$ ] || continue
        { tr '\0' '\n' <"$proc/cmdline" | grep -qF -- "$1"; } 2>/dev/null || continue
        if find "$proc/fd" -lname /dev/fuse 2>/dev/null | grep -q .; then
            printf '%s\n' "$pid"
        fi
    done
}

# wait_gone SECONDS PID...: waits until the processes have ended; fails when they have not in time.
wait_gone() {
    local tries=$(($1 * 20)) pid
    shift
    for pid in "$@"; do
        while [ -d "/proc/$pid" ] && [ "$(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null)" != Z ]; do
            [ "$tries" -gt 0 ] || return 1
            tries=$((tries - 1))
            sleep 0.05
        done
    done
}

# unmount_union MNT: unmounts as a person would, and waits until the daemon has ended: only then is
# everything in upper, and the upper free for the next mount.
unmount_union() {
    local pids
    mapfile -t pids < <(fuse_daemons "$1")
    if command -v fusermount3 >/dev/null && [ ${#pids[@]} -gt 0 ]; then
        timeout -k 5 60 fusermount3 -u "$1" || return 1
    else
        timeout -k 5 60 umount "$1" || return 1
    fi
    wait_gone 30 "${pids[@]}"
}

# release_dir DIR: takes everything down that is mounted below DIR, whatever state it is in, ends the
# daemons that served it, and removes DIR. Never hangs: a mount that does not answer is aborted first.
release_dir() {
    local dir=$1 point minor pids
    [ -d "$dir" ] || return 0
    mapfile -t pids < <(fuse_daemons "$dir")
    while read -r point; do
        point=$(printf '%b' "${point//\\/\\0}")
        timeout -k 5 10 umount -- "$point" 2>/dev/null && continue
        minor=$(POINT=$(mountinfo_path "$point") awk '
            $5 == ENVIRON["POINT"] { split($3, dev, ":"); minor = dev[2] } END { print minor }' /proc/self/mountinfo)
        if [ -n "$minor" ] && [ -w "/sys/fs/fuse/connections/$minor/abort" ]; then
            echo 1 >"/sys/fs/fuse/connections/$minor/abort" || true
        fi
        timeout -k 5 10 umount -l -- "$point" 2>/dev/null || timeout -k 5 10 fusermount3 -u -z -- "$point" || true
    done < <(mounts_below "$dir")
    if [ ${#pids[@]} -gt 0 ] && ! wait_gone 10 "${pids[@]}"; then
        kill -KILL "${pids[@]}" 2>/dev/null || true
        wait_gone 10 "${pids[@]}" || true
    fi
    # An aborted daemon may have been writing until now, hence once more when the first pass loses to it.
    rm -rf --one-file-system -- "$dir" 2>/dev/null || rm -rf --one-file-system -- "$dir"
}

# logged LOG COMMAND...: what it says on stderr goes to LOG. Once more where podman or buildah could not seal the copy of itself
# that it starts: the kernel answers EBUSY while somebody else, as its reclaim, holds a page of that, and nothing is done yet.
logged() {
    local log=$1 said=0 status=0
    shift
    [ ! -f "$log" ] || said=$(stat -c %s "$log")
    "$@" 2>>"$log" || status=$?
    if [ "$status" -ne 0 ] && tail -c "+$((said + 1))" "$log" | grep -q 'sealing memfd copy: Device or resource busy'; then
        status=0
        "$@" 2>>"$log" || status=$?
    fi
    return "$status"
}
