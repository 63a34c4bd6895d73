# shellcheck shell=bash
# What our mounts leave in upper, without a runtime in between: who else can read it, and what a change of owners costs.
# Sourced by scripts/runtimes/run.

# in_namespace COMMAND...: as root; or as the plain user in the user namespace that podman makes, with all its ids.
in_namespace() {
    if [ "$who" = root ]; then as "$@"; else as podman unshare "$@"; fi
}

# In a mount namespace of its own, since a plain user's daemons live in podman's.
readers='
set -eu
cd "$1"; ours=$2; shift 2
rm -rf readers; mkdir readers; cd readers
mkdir -p l/d/sub l/e l/tree/sub u w m
echo a >l/d/a; echo b >l/d/sub/b; echo f >l/f; echo t >l/tree/sub/t; echo g >l/g
for name in 1 2 3; do echo $name >l/e/$name; done
all() { (cd "$1" && find . -printf "%P %y %m %U:%G %s\n" | sort && find . -type f -exec cat {} + | sort); }
"$ours" -o lowerdir=l,upperdir=u,workdir=w m
rm -rf m/d; mkdir m/d; echo new >m/d/new            # a directory removed and made anew
rm m/e/2; rm m/f; mkdir m/f; echo x >m/f/x           # a directory in the place of a file
rm -rf m/tree; echo file >m/tree                     # a file in the place of a directory
mv m/g m/e/g; chmod 4711 m/e/g; chown 3:4 m/e/1
all m >ours; umount m
for reader in "$@"; do
    case $reader in
    kernel) mount -t overlay overlay -o "lowerdir=l,upperdir=u,workdir=w" m ;;
    kernel-user) mount -t overlay overlay -o "userxattr,lowerdir=l,upperdir=u,workdir=w" m ;;
    *) for try in 1 2 3 4 5 6 7 8 9; do "$reader" -o lowerdir=l,upperdir=u,workdir=w m 2>/dev/null && break; sleep 0.2; done ;;
    esac
    all m >theirs; umount m
    echo "== $reader"; diff ours theirs
done
echo "all $# read the same"
'

step_other_readers() {
    need_packages fuse-overlayfs=fuse-overlayfs
    local kernel=kernel
    [ "$who" = root ] || kernel=kernel-user
    in_namespace unshare --mount sh -c "$readers" sh "$dir/tmp" "$mount_program" "$(command -v fuse-overlayfs)" "$kernel" \
        >"$dir/readers" || true
    equal "what we leave in upper is read by fuse-overlayfs and by the kernel's overlay" "all 2 read the same" \
        "$(grep -v '^==' "$dir/readers")" || true
}

owners_of_many='
set -eu
cd "$1"; ours=$2
rm -rf many; mkdir many; cd many
mkdir -p l u w m
for i in $(seq 20); do mkdir l/$i; for j in $(seq 20); do head -c 262144 /dev/urandom >l/$i/$j; done; done
sum() { (cd "$1" && find . -type f -exec sha256sum {} + | sort | sha256sum); }
before=$(sum l)
"$ours" -o lowerdir=l,upperdir=u,workdir=w,metacopy=on m
chown -R 7:8 m
echo "owners $(find m -printf "%U:%G\n" | sort | uniq -c | tr -s " ")"
[ "$(sum m)" = "$before" ] && echo "contents are the same"
umount m
[ "$(du -sk u | cut -f1)" -lt 4096 ] && echo "upper has less than 4 of 100 MiB"
[ "$(sum l)" = "$before" ] && [ "$(find l -printf "%U:%G\n" | sort -u)" = 0:0 ] && echo "the lower is as it was"
'

step_owners_of_many() {
    in_namespace unshare --mount sh -c "$owners_of_many" sh "$dir/tmp" "$mount_program" >"$dir/many" || true
    equal "chown -R of 100 MiB with metacopy=on changes the owners and copies no data" "owners  421 7:8
contents are the same
upper has less than 4 of 100 MiB
the lower is as it was" "$(cat "$dir/many")" || true
}
