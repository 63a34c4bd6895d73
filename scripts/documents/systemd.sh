# shellcheck shell=bash
# The step with systemd, for scripts/documents/run, whose `check` and `equal` it speaks with: a small Debian root is
# booted with the units and the fstab of the documents in it, in namespaces of its own.
# Single quotes are for what a shell inside expands; `work` and the like are the caller's.
# shellcheck disable=SC2154,SC2317,SC2016

# boot_root: sets `boot_tar` to a tar of a Debian root that can be booted.
boot_root() {
    local own=$debian_tar
    debian_root essential boot systemd,systemd-sysv,dbus,fuse3,mount,procps
    boot_tar=$debian_tar debian_tar=$own
}

step_systemd() {
    local boot=$work/boot
    unpack_root "$boot_tar" "$boot"
    mkdir -p "$boot"/{outcome,mnt/merged,mnt/shown,srv/app,srv/base,srv/changes/upper,srv/changes/work}
    echo app >"$boot/srv/app/both"
    echo base | tee "$boot/srv/base/both" >"$boot/srv/base/below"
    cp "$program" "$boot/usr/local/bin/unionfs-rs"
    ln -s unionfs-rs "$boot/usr/local/bin/fuse-overlayfs"
    cp "$files"/*.mount "$files"/*.service "$boot/etc/systemd/system/"
    cp "$files/fstab" "$boot/etc/fstab"
    # Where there is none, one that can be looked for and not started.
    if find_snapshotter; then
        cp "$snapshotter" "$boot/usr/local/bin/containerd-fuse-overlayfs-grpc"
    else
        : >"$boot/usr/local/bin/containerd-fuse-overlayfs-grpc"
    fi
    chmod 0755 "$boot/usr/local/bin/containerd-fuse-overlayfs-grpc"
    cp "$here/boot" "$boot/outcome/script"
    cat >"$boot/etc/systemd/system/trial.service" <<'UNIT'
[Unit]
After=basic.target local-fs.target
Requires=basic.target
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
ExecStart=/bin/sh /outcome/script
StandardOutput=file:/outcome/said
StandardError=inherit
TimeoutStartSec=120
UNIT
    # Not /dev/null as a machine id, nor the machine's own.
    echo uninitialized >"$boot/etc/machine-id"
    # A control group of its own, which systemd takes for the root of all.
    local group
    group=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
    [ -z "$group" ] || group=$group$(sed -n 's/^0:://p' /proc/self/cgroup)/unionfs-rs-documents
    [ -z "$group" ] || mkdir -p "$group"
    (
        [ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
        exec timeout -k 5 200 unshare --mount --pid --fork --kill-child --uts --ipc --cgroup --mount-proc -- bash -c "$enter_and_boot" boot "$boot"
    ) >>"$log" 2>&1 </dev/null || skip="systemd does not run in namespaces here: $(tail -n 1 "$log")"
    [ -z "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>>"$log" || true
    if [ ! -s "$boot/outcome/said" ]; then
        skip=${skip:-systemd does not run in namespaces here}
        return 0
    fi
    skip=
    # One line a fact: "ok FACT" or "NOT FACT", and what was seen on the lines before.
    local how fact
    cat "$boot/outcome/said" >>"$log"
    while read -r how fact; do
        case $how in
            ok) passes ;;
            NOT)
                grep -B 12 -A 12 -F "NOT $fact" "$boot/outcome/said" | grep -v '^ok' >"$log.fact"
                (log=$log.fact && fails "$fact") || failed=$((failed + 1))
                ;;
        esac
    done < <(grep -E '^(ok|NOT) ' "$boot/outcome/said")
    equal "it came to its end" the-end "$(tail -n 1 "$boot/outcome/said")" || true
    equal "what was written before the shutdown is in upper" late "$(cat "$boot/srv/changes/upper/late")" || true
    rm -rf "$boot"
}

# systemd as the first process of a container: a root, a small /dev, and cgroup2 where it can be mounted.
enter_and_boot='
set -eu
root=$1
mount --make-rprivate /
mount --rbind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 none dev
mount -t tmpfs -o mode=755 none run
device() { mknod -m 666 "dev/$1" c "$2" "$3"; }
device null 1 3; device zero 1 5; device full 1 7; device random 1 8; device urandom 1 9; device tty 5 0; device fuse 10 229
ln -s /proc/self/fd dev/fd
mkdir dev/shm dev/pts outcome/old
: >dev/console
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
pivot_root . outcome/old
umount -l outcome/old
exec env -i container=private PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=trial.service --show-status=no
'
