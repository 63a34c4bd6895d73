# shellcheck shell=bash
# The steps with containerd, docker and apptainer, for scripts/documents/run, whose `as`, `check` and `equal` they
# speak with.
# Single quotes are for what a shell inside expands; `work` and the like are the caller's.
# shellcheck disable=SC2034,SC2154,SC2317,SC2016

# fetch_daemons: containerd and docker from Debian, unpacked into the cache and not installed: a test must not
# start a service on the machine that it runs on.
fetch_daemons() {
    fetched=$cache_dir/daemons-$(. /etc/os-release && echo "${VERSION_CODENAME:-none}")
    [ -e "$fetched/usr/sbin/dockerd" ] || locked daemons unpack_daemons || true
    mkdir -p "$fetched/usr/sbin" "$fetched/usr/bin"
}

unpack_daemons() {
    [ ! -e "$fetched/usr/sbin/dockerd" ] || return 0
    command -v apt-get >/dev/null || return 0
    say "fetching docker.io and containerd from Debian, to unpack and not to install (once)"
    local dir package
    dir=$(mktemp -d)
    chmod 0755 "$dir"
    if (cd "$dir" && apt-get download docker.io containerd tini) >"$dir/log" 2>&1; then
        for package in "$dir"/*.deb; do dpkg -x "$package" "$dir/root"; done
        rm -rf "$fetched"
        mv "$dir/root" "$fetched"
    else
        say "they could not be fetched"
    fi
    rm -rf "$dir"
}

# daemon NAME: sets `found` to a program, installed or fetched.
daemon() {
    found=$(PATH=$PATH:${fetched:-/nonexistent}/usr/sbin:${fetched:-/nonexistent}/usr/bin command -v "$1") && return 0
    skip="$1 is not installed"
    return 1
}

# ---- containerd ----------------------------------------------------------------------------------

step_containerd() {
    become root
    # What containerd's mount package does for a mount of the type fuse3.fuse-overlayfs, option by option, with
    # the options of the snapshotter. First the call by which the snapshotter looks whether it works.
    the_layers
    check "the call without an upper" as mount.fuse3 overlay /mnt/merged -o lowerdir=/srv/app:/srv/base -t fuse-overlayfs || return 0
    equal "mounts a tree" "fuse.fuse-overlayfs overlay" "$(as findmnt -n -o FSTYPE,SOURCE /mnt/merged | sed 's/  */ /g')" || true
    check "fusermount3 -u" as fusermount3 -u /mnt/merged || true
    check "the call of a container" as mount.fuse3 overlay /mnt/merged -o workdir=/srv/changes/work -o upperdir=/srv/changes/upper \
        -o lowerdir=/srv/app:/srv/base -o writeback=0 -t fuse-overlayfs || return 0
    echo new >/mnt/merged/new
    check "fusermount3 -u" as fusermount3 -u /mnt/merged || true
    equal "upper has what was written" new "$(cat /srv/changes/upper/new)" || true
    check "nothing is mounted" no_mounts || true
    # As a user in a namespace of their own, which is where a rootless containerd runs.
    the_layers
    chown -R "$user_id:$user_id" /srv/changes /mnt/merged
    become user
    equal "the same in a user namespace" $'app\nfuse.fuse-overlayfs' "$(as unshare -Urm sh -c 'mount.fuse3 overlay /mnt/merged -o workdir=/srv/changes/work \
        -o upperdir=/srv/changes/upper -o lowerdir=/srv/app:/srv/base -o writeback=0 -t fuse-overlayfs && cat /mnt/merged/both && echo >/mnt/merged/x &&
        sed -n "s/.* - \(fuse.fuse-overlayfs\) .*/\1/p" /proc/self/mountinfo && fusermount3 -u /mnt/merged')" || true
    become root

    daemon containerd || return 0
    local config
    config=$(as "$found" -c "$files/containerd-config.toml" config dump)
    equal "containerd reads the proxy plugin" '  [proxy_plugins.fuse-overlayfs]
    address = "/run/containerd-fuse-overlayfs/snapshotter.sock"
    type = "snapshot"' "$(grep -A 2 'proxy_plugins.fuse-overlayfs' <<<"$config")" || true
    holds "and the snapshotter of pods" 'snapshotter = "fuse-overlayfs"' "$config" || true
    holds "the unit has the same socket" " $(sed -n 's/.*address = "\(.*\)"/\1/p' "$files/containerd-config.toml") " \
        "$(grep ^ExecStart= "$files/containerd-fuse-overlayfs.service")" || true
}

# find_snapshotter: sets `snapshotter`.
find_snapshotter() {
    snapshotter=${UNIONFS_SNAPSHOTTER:-$(command -v containerd-fuse-overlayfs-grpc || true)}
    [ -n "$snapshotter" ]
}

step_snapshotter() {
    local pids=() lines
    find_snapshotter || { skip="containerd-fuse-overlayfs-grpc is in no package of Debian; UNIONFS_SNAPSHOTTER names one"; return 0; }
    daemon containerd || return 0
    [ -s "$work/image.tar" ] || { skip="there is no image"; return 0; }
    become root
    install -m 0755 "$snapshotter" /usr/local/bin/containerd-fuse-overlayfs-grpc
    mkdir -p /etc/containerd 2>/dev/null
    local words
    read -r -a words < <(sed -n 's/^ExecStart=//p' "$files/containerd-fuse-overlayfs.service")
    "${prefix[@]}" "${words[@]}" >>"$log" 2>&1 </dev/null &
    pids+=($!)
    if check "the snapshotter listens" until_true 100 test -S "${words[1]}"; then
        PATH=$PATH:${fetched:-/}/usr/bin "${prefix[@]}" "$found" -c "$files/containerd-config.toml" >>"$log" 2>&1 </dev/null &
        pids+=($!)
        if check "containerd starts" until_true 200 as ctr version; then containers_of_containerd; fi
    fi
    for ((; ${#pids[@]} > 0; )); do
        stop_process "${pids[-1]}"
        unset 'pids[-1]'
    done
    check "nothing is mounted" no_mounts || true
}

containers_of_containerd() {
    lines=$(as ctr plugins ls | awk '$2 == "fuse-overlayfs" { print $1, $NF }')
    equal "the plugin" "io.containerd.snapshotter.v1 ok" "$lines" || true
    check "an image" as ctr image import --snapshotter fuse-overlayfs "$work/image.tar" || return 0
    equal "a container" $'built\nfuse.fuse-overlayfs' "$(as ctr run --rm --snapshotter fuse-overlayfs localhost/built:1 ctr1 \
        sh -c 'cat /built; awk "\$2 == \"/\" { print \$3 }" /proc/mounts')" || true
    check "a container that stays" as ctr run -d --snapshotter fuse-overlayfs localhost/built:1 ctr2 sleep 600 || return 0
    equal "another process in it" changed "$(as ctr task exec --exec-id e1 ctr2 sh -c 'rm -r /etc/init.d; mkdir /etc/init.d; echo changed >/etc/init.d/x; cat /etc/init.d/*')" || true
    equal "the mount" "fuse3.fuse-overlayfs" "$(as ctr snapshots --snapshotter fuse-overlayfs mounts /mnt/x ctr2 | grep -o 'fuse3[^ ]*' | head -n 1)" || true
    as ctr task kill -s KILL ctr2 || true
    until_true 50 as ctr task delete ctr2 || true
    check "it is removed" as ctr container delete ctr2 || true
    check "no snapshot of a container is left" [ -z "$(as ctr snapshots --snapshotter fuse-overlayfs ls | awk '$3 == "Active"')" ] || true
}

# ---- docker --------------------------------------------------------------------------------------

step_docker() {
    become root
    daemon dockerd || return 0
    local dockerd=$found pid
    daemon docker || return 0
    local docker=$found
    [ -s "$work/image.tar" ] || { skip="there is no image"; return 0; }
    prefix+=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:${fetched:-/}/usr/bin:${fetched:-/}/usr/sbin")
    check "the daemon takes the file" as "$dockerd" --help || true
    "${prefix[@]}" "$dockerd" --config-file "$files/docker-daemon.json" --iptables=false --ip6tables=false --bridge=none \
        --ip-forward=false --ip-masq=false --exec-opt native.cgroupdriver=cgroupfs >>"$log" 2>&1 </dev/null &
    pid=$!
    if check "dockerd starts" until_true 300 as "$docker" info; then
        equal "its storage driver" fuse-overlayfs "$(as "$docker" info --format '{{.Driver}}')" || true
        check "an image" as "$docker" load -q -i "$work/image.tar" || true
        equal "a container" $'built\nfuse.fuse-overlayfs' "$(as "$docker" run --rm --network none localhost/built:1 \
            sh -c 'cat /built; awk "\$2 == \"/\" { print \$3 }" /proc/mounts')" || true
        as "$docker" run --name ctr1 --network none localhost/built:1 sh -c 'rm -r /etc/init.d; mkdir /etc/init.d; echo 1 >/etc/init.d/new' || true
        equal "docker diff" $'A /etc/init.d/new\nC /etc\nC /etc/init.d' "$(as "$docker" diff ctr1 | grep -E ' /etc(/init.d(/new)?)?$' | sort)" || true
        check "docker commit" as "$docker" commit ctr1 localhost/c1:1 || true
        equal "the image holds what the container held" new "$(as "$docker" run --rm --network none localhost/c1:1 ls /etc/init.d)" || true
        check "it is removed" as "$docker" rm -f ctr1 || true
    fi
    stop_process "$pid"
    check "nothing is mounted" no_mounts || true
}

# ---- apptainer -----------------------------------------------------------------------------------

# What apptainer's image driver does, in a user namespace: it starts fuse-overlayfs in front, waits two seconds at most for
# the mount, and says as a message to the user what the program has said.
step_apptainer() {
    the_layers
    chown -R "$user_id:$user_id" /srv/changes /mnt/merged
    become user
    equal "the call" $'app\nsaid:\nended' "$(as unshare -Urm sh -c 'fuse-overlayfs -f -o \
lowerdir=/srv/app:/srv/base,upperdir=/srv/changes/upper,workdir=/srv/changes/work /mnt/merged >/srv/changes/said 2>&1 & pid=$!
        n=0; until grep -q " /mnt/merged .* fuse.fuse-overlayfs " /proc/self/mountinfo || [ $n -ge 20 ]; do n=$((n + 1)); sleep 0.1; done
        cat /mnt/merged/both; echo >/mnt/merged/written; echo "said:$(cat /srv/changes/said)"
        umount /mnt/merged; n=0; while [ -d /proc/$pid ] && [ $n -lt 10 ] && ! grep -q Z /proc/$pid/stat; do n=$((n + 1)); sleep 0.1; done
        [ $n -lt 10 ] && echo ended')" || true
    check "upper has what was written" [ -e /srv/changes/upper/written ] || true
    become root
}
