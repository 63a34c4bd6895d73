# shellcheck shell=bash
# The steps that work with containers of the third image, for scripts/runtimes/run, whose `as`, `check` and
# `equal` they speak with.
# Single quotes are for what a shell inside expands.
# shellcheck disable=SC2154,SC2317,SC2016

# sorted_changes CONTAINER: without what the runtime itself mounts and makes, which is not of the file system.
# podman looks for an image first, and the beginning of an ID is enough of a name: no container here has a name of
# hexadecimal digits alone.
sorted_changes() { as podman diff "$1" | sort; }

# remove CONTAINER...: what podman cleans up after a container's end goes on for a moment after `podman run`, and
# a removal can meet it ("device or resource busy").
remove() {
    local tries=5
    until as podman rm -f -t 0 "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.5
    done
}

# An exact list of changes, whoever makes them.
step_container() {
    local inside_c='set -eu
        rm -rf /d; mkdir /d; echo >/d/new; mkdir /d/sub
        rm /s/new-name; echo x >>/s/grow; mkdir /s/made; echo 1 >/s/made/file; chmod 0700 /s/keep
        rm -r /s/gone; echo file >/s/gone; rm /s/file-to-dir; mkdir /s/file-to-dir; echo 1 >/s/file-to-dir/in
        cat /s/large >/dev/null; touch -a /s/plain; mv /s/links/solo-c /s/links/solo-d
        echo 1 >/s/comes; rm /s/comes; chmod 0444 /s/large; chmod 0644 /s/large'
    check "a container changes what is in it" as podman run --name ctr1 --pull=never localhost/l3:1 sh -c "$inside_c" || return 0
    equal "podman diff of the container" 'A /d/new
A /s/file-to-dir/in
A /s/links/solo-d
A /s/made
A /s/made/file
C /d
C /d/sub
C /etc
C /s
C /s/file-to-dir
C /s/gone
C /s/grow
C /s/keep
C /s/links
D /d/sub/c
D /s/links/solo-c
D /s/new-name' "$(sorted_changes ctr1)" || true
    check "it is committed" as podman commit -q ctr1 localhost/c1:1 || return 0
    equal "what it committed" $'/d\n/d/new\n/d/sub\n/s/made\n/s/made/file\nin\nx' \
        "$(inside localhost/c1:1 sh -c 'find /d /s/made | sort; ls /s/file-to-dir; tail -n 1 /s/grow')" || true
    equal "podman diff of the image of it" "$(sorted_changes ctr1)" "$(as podman diff localhost/c1:1 | sort)" || true

    # Both ways, a container that is stopped and one that runs.
    as mkdir -p "$dir/out/in/deep" "$dir/out/back"
    as sh -c "echo 'from outside' >'$dir/out/in/a b'; echo deep >'$dir/out/in/deep/file'; chmod 0640 '$dir/out/in/deep/file'; ln -s deep '$dir/out/in/link'"
    local running etc
    for running in no yes; do
        etc=
        if [ "$running" = yes ]; then
            # Where the runtime puts its hosts and its resolv.conf.
            etc=$'C /etc\n'
            check "a container that stays" as podman run -d --name ctr2 --pull=never localhost/l3:1 sleep 1000 || return 0
        else
            check "a container that is not started" as podman create --name ctr2 --pull=never localhost/l3:1 sleep 1000 || return 0
        fi
        check "podman cp into it (running: $running)" as podman cp "$dir/out/in/." ctr2:/s/copied || true
        check "podman cp of a file over one of the image" as podman cp "$dir/out/in/a b" ctr2:/s/grow || true
        check "podman cp out of it" as podman cp ctr2:/s/copied "$dir/out/back/$running" || true
        check "podman cp of a tree of the image" as podman cp ctr2:/s/tree "$dir/out/back/tree-$running" || true
        equal "there and back is the same" "$(as python3 "$here/manifest.py" "$dir/out/in" 0 | sed 1d)" \
            "$(as python3 "$here/manifest.py" "$dir/out/back/$running" 0 | sed 1d)" || true
        equal "the tree that came out" $'1\nempty\nx-renamed' "$(ls "$dir/out/back/tree-$running")" || true
        equal "podman diff names what was copied in" $'A /s/copied\nA /s/copied/a b\nA /s/copied/deep\nA /s/copied/deep/file\nA /s/copied/link\n'"$etc"$'C /s\nC /s/grow' \
            "$(sorted_changes ctr2)" || true
        check "the container is removed" remove ctr2 || true
    done
    check "the first one is removed" remove ctr1 || true
}

step_ways_to_run() {
    check "--rm" inside localhost/l3:1 sh -c 'rm -rf /s; echo >/new' || true
    equal "--rm leaves no container" "" "$(as podman ps -aq)" || true
    equal "--read-only refuses a write and has its tmpfs" $'refused\nwritten' \
        "$(inside --read-only localhost/l3:1 sh -c '(echo >/s/x) 2>/dev/null || echo refused; (echo >>/s/grow) 2>/dev/null || :; echo written >/tmp/x; cat /tmp/x')" || true

    as sh -c "mkdir -p '$dir/out/volume/sub'; echo one >'$dir/out/volume/one'; echo two >'$dir/out/volume/sub/two'"
    local before
    before=$(as python3 "$here/manifest.py" "$dir/out/volume" 0)
    equal "-v DIR:/mnt:O takes changes" $'new\none\nmore\nsub2\nthree' \
        "$(inside -v "$dir/out/volume:/mnt:O" localhost/l3:1 sh -c 'echo more >>/mnt/one; rm -r /mnt/sub; mkdir /mnt/sub2; echo three >/mnt/sub2/three; echo >/mnt/new; ls /mnt | head -n 1; cat /mnt/one; ls -d /mnt/sub* | sed s,.*/,,; cat /mnt/sub2/three')" || true
    equal "and keeps them from the directory" "$before" "$(as python3 "$here/manifest.py" "$dir/out/volume" 0)" || true
    equal "--mount type=image" $'/img/d\n/img/d/new\nrefused' \
        "$(inside --mount type=image,source=localhost/l2:1,destination=/img localhost/l1:1 sh -c 'find /img/d | sort; (echo >/img/x) 2>/dev/null || echo refused')" || true
    equal "--mount type=image,rw=true" $'written' \
        "$(inside --mount type=image,source=localhost/l2:1,destination=/img,rw=true localhost/l1:1 sh -c 'echo written >/img/d/x; cat /img/d/x')" || true
    equal "and the image is as before" $'/d\n/d/new' "$(inside localhost/l2:1 find /d | sort)" || true
    if [ "$party" != kernel ]; then
        local info
        info=$(as podman info)
        check "podman info names the mount program" grep -qF "Executable: $mount_program" <<<"$info" || true
        check "and shows its version: $("$mount_program" --version 2>&1 | head -n 1)" grep -qF "$("$mount_program" --version 2>&1 | tail -n 1)" <<<"$info" || true
    fi
}

# Owners through a map. Owners that the map does not have are the overflow ids.
owners='cd /s/own && stat -c "%n %u:%g %a" file-0:0 file-1:1 dir-33:4 file-1000:1000 file-4999:4998 link-1:1 suid-of-another; chown 5:6 file-1:1; echo >written; mkdir -p made; chown 33:4 made; chown 1:2 suid-of-another; chmod 2755 suid-of-another; stat -c "%n %u:%g %a" written made file-1:1 suid-of-another'
owners_inside='file-0:0 0:0 644
file-1:1 1:1 644
dir-33:4 1001:1001 755
file-1000:1000 1000:1000 644
file-4999:4998 4999:4998 644
link-1:1 1:1 777
suid-of-another 0:0 755
written 0:0 644
made 33:4 755
file-1:1 5:6 644
suid-of-another 1:2 2755'

# outside CONTAINER NAME...: uid:gid of these in the upper directory of a container, as the machine sees them.
outside() {
    local upper
    upper=$(as podman inspect --format '{{.GraphDriver.Data.UpperDir}}' "$1")
    shift
    (cd "$upper/s/own" && stat -c '%n %u:%g' "$@")
}

# As root, containers/storage of podman 4 gives a mount program lower layers that are mapped already, by idmapped
# mounts (lowerdir=…/mapped/0/…), and tells it to map them (uidmapping=…): each owner would be mapped twice (it is by
# fuse-overlayfs 1.10), unless the program sees that the lower is an idmapped mount. It is asked for once as it comes;
# then the idmapped mounts are switched off, by the file in which containers/storage keeps what it found out about the
# kernel.
mapped_lowers() {
    local got record=$dir/run/overlay/idmapped-lower-dir
    [ -e "$record-true" ] || return 0
    got=$(inside --uidmap 0:1000:5000 --gidmap 0:1000:5000 localhost/l3:1 stat -c '%u:%g' /s/own/file-0:0 /s/own/file-1:1)
    equal "--uidmap with lower layers that are mapped already" $'0:0\n1:1' "$got" || true
    rm "$record-true"
    : >"$record-false"
}

step_maps() {
    local first second ids
    # With a mount program, what is stored are the owners of the container: the map belongs to the mount. On the
    # kernel's overlay the lower layers alone are mapped, and upper has the owners of the machine.
    if [ "$who" = root ]; then
        [ "$party" = kernel ] || mapped_lowers
        equal "--uidmap 0:1000:5000: owners inside" "$owners_inside" \
            "$(as podman run --name m1 --pull=never --uidmap 0:1000:5000 --gidmap 0:1000:5000 localhost/l3:1 sh -c "$owners")" || true
        ids="written 0:0
made 33:4
file-1:1 5:6
suid-of-another 1:2"
        [ "$party" != kernel ] || ids="written 1000:1000
made 1033:1004
file-1:1 1005:1006
suid-of-another 1001:1002"
        equal "and outside, in upper" "$ids" "$(outside m1 written made file-1:1 suid-of-another)" || true
        check "started again" as podman start -a m1 || true
        as podman run --name m2 --pull=never --uidmap 0:1000:5000 --gidmap 0:1000:5000 localhost/l3:1 sh -c 'echo 1 >/s/new' || true
        equal "podman diff with a map" $'A /s/new\nC /etc\nC /s' "$(sorted_changes m2)" || true
        check "a commit with a map" as podman commit -q m1 localhost/m1:1 || true
        # (The image that a container of the kernel's overlay with a map makes has the mapped owners.)
        equal "the owners in the image that it makes" "$ids" \
            "$(inside localhost/m1:1 sh -c 'cd /s/own && stat -c "%n %u:%g" written made file-1:1 suid-of-another')" || true
        check "both are removed" remove m1 m2 || true
    else
        equal "--userns=keep-id: who it is, and owners" "$user_id
$user_id:$user_id
0:0
1:1" "$(inside --userns=keep-id localhost/l3:1 sh -c 'id -u; echo >/tmp/x; stat -c %u:%g /tmp/x /s/own/file-0:0 /s/own/file-1:1')" || true
        check "--userns=keep-id: a file of the user's" as podman run --name m1 --pull=never --userns=keep-id -u 0 localhost/l3:1 \
            sh -c "echo >/s/own/mine; chown $user_id:$user_id /s/own/mine; echo >/s/own/roots; chown 5:6 /s/own/file-1:1" || true
        first=$(outside m1 mine roots file-1:1)
        equal "and outside, in upper" "$keep_id_outside" "$first" || true
        check "it is removed" remove m1 || true
        second=$(as podman run --name m2 --pull=never --uidmap 0:1000:5000 --gidmap 0:1000:5000 localhost/l3:1 sh -c "$owners" || true)
        equal "--uidmap 0:1000:5000, rootless: owners inside" "$owners_inside" "$second" || true
        remove m2 || true
    fi
}
# shellcheck disable=SC2034
keep_id_outside="mine $((2000000 + 4321 - 1)):$((2000000 + 4321 - 1))
roots 4321:4321
file-1:1 2000004:2000005"

# A daemon that is killed takes no more with it than what was not written yet.
step_kill() {
    local pids merged
    check "a container writes and stays" as podman run -d --name k1 --pull=never localhost/l3:1 \
        sh -c 'if [ ! -e /kept ]; then echo written >/kept; rm -rf /d; mkdir /d; echo >/d/newer; fi; echo ready >/ready; sync /kept; exec sleep 1000' || return 0
    local tries=50
    until as podman exec k1 test -e /ready || [ "$tries" -eq 0 ]; do tries=$((tries - 1)); sleep 0.1; done
    mapfile -t pids < <(fuse_daemons "$dir/graph/")
    check "one daemon serves it" [ ${#pids[@]} -eq 1 ] || return 0
    kill -KILL "${pids[@]}"
    wait_gone 10 "${pids[@]}" || true
    if as podman exec k1 cat /kept; then check "nothing is read without the daemon" false || true; fi
    check "it can be stopped" as podman stop -t 1 k1 || true
    check "and started" as podman start k1 || true
    tries=50
    until as podman exec k1 test -e /ready || [ "$tries" -eq 0 ]; do tries=$((tries - 1)); sleep 0.1; done
    equal "and holds what was written" $'written\n/d\n/d/newer' "$(as podman exec k1 sh -c 'cat /kept; find /d | sort')" || true
    mapfile -t pids < <(fuse_daemons "$dir/graph/")
    check "a new daemon serves it" [ ${#pids[@]} -eq 1 ] || return 0
    kill -KILL "${pids[@]}"
    check "killed again, it can be removed as it runs" as podman rm -f -t 0 k1 || true
    equal "and is gone" "" "$(as podman ps -aq)" || true

    # Mounted, and not running. A plain user's mounts are in a namespace of podman's.
    local enter_mounts=()
    [ "$who" = root ] || enter_mounts=(podman unshare)
    check "a container is mounted" as podman create --name k2 --pull=never localhost/l3:1 true || return 0
    merged=$(as "${enter_mounts[@]}" podman mount k2)
    as "${enter_mounts[@]}" sh -c 'echo before >"$1/before"' sh "$merged" || true
    mapfile -t pids < <(fuse_daemons "$dir/graph/")
    check "one daemon serves it" [ ${#pids[@]} -eq 1 ] || return 0
    kill -KILL "${pids[@]}"
    wait_gone 10 "${pids[@]}" || true
    check "it can be unmounted" as "${enter_mounts[@]}" podman umount k2 || true
    merged=$(as "${enter_mounts[@]}" podman mount k2)
    equal "and holds what was written" before "$(as "${enter_mounts[@]}" cat "$merged/before")" || true
    check "unmounted" as "${enter_mounts[@]}" podman umount k2 || true
    check "removed" remove k2 || true
}

# processes_left: what runs in this process namespace beside this script.
processes_left() {
    local proc pid
    for proc in /proc/[0-9]*; do
        pid=${proc#/proc/}
        case $pid in "$$" | "$BASHPID") continue ;; esac
        [ "$(sed 's/.*) //; s/ .*//' "$proc/stat" 2>/dev/null)" != Z ] || continue
        tr '\0' ' ' <"$proc/cmdline" 2>/dev/null | cut -c 1-200 | sed "s/^/process $pid: /" || true
    done
}

# mounts_left: FUSE mounts in any mount namespace that a process here is in.
mounts_left() {
    local proc
    for proc in /proc/[0-9]*; do
        awk -v top="$dir/" '{ for (i = 7; i <= NF; i++) if ($i == "-") type = $(i + 1) }
            type ~ /^(fuse|overlay)/ && index($5, top) == 1 { print "mount " type " " $5 }' "$proc/mountinfo" 2>/dev/null || true
    done | sort -u
}

step_left_behind() {
    as podman rm -fa -t 0 >/dev/null || true
    as buildah rm -a >/dev/null || true
    equal "no container is left" "" "$(as podman ps -aq --external)" || true
    local tries=100
    while [ -n "$(mounts_left)" ] && [ "$tries" -gt 0 ]; do tries=$((tries - 1)); sleep 0.1; done
    equal "no mount is left" "" "$(mounts_left)" || true
    # A plain user's podman keeps a process that holds its namespaces: it ends on demand.
    [ "$who" = root ] || as podman system migrate || true
    tries=50
    while [ -n "$(processes_left)" ] && [ "$tries" -gt 0 ]; do tries=$((tries - 1)); sleep 0.1; done
    equal "no process is left" "" "$(processes_left)" || true
}
