# shellcheck shell=bash
# The steps in which images are built from a Dockerfile, leave a storage and come into another one, for
# scripts/runtimes/run, whose `as`, `check` and `equal` they speak with.
# Single quotes are for what a shell inside expands.
# shellcheck disable=SC2154,SC2317,SC2016

step_dockerfile() {
    as mkdir -p "$dir/out/context/app/deep"
    as sh -c "cd '$dir/out/context' && echo one >app/one && echo two >app/deep/two && chmod 0750 app/deep && ln -s deep/two app/link" || true
    # `as` reads nothing from this script's input, hence by an argument.
    as sh -c 'printf "%s\n" "$1" >"$2/out/context/Dockerfile"' sh 'FROM localhost/base:1
ENV STORY=told
RUN echo app:x:1234: >>/etc/group && echo app:x:1234:1234::/home/app:/bin/sh >>/etc/passwd && mkdir /home/app && chown app:app /home/app
RUN mkdir -p /srv/app/old && echo old >/srv/app/old/file && echo gone >/srv/app/gone && chmod 2775 /srv/app
COPY app /srv/app
COPY --chown=1234:1234 app/one /srv/app/owned/
RUN rm -rf /srv/app/old /srv/app/gone && mkdir /srv/app/old && echo new >/srv/app/old/new
WORKDIR /srv/app/work
RUN chown app:app . && echo "$STORY" >told
USER app
RUN id -un >who && echo "$HOME" >home && ln who who-again && mv who whoever
USER root
RUN sed -i /^app:/d /etc/passwd /etc/group && rm -r /home/app /srv/app/work/home
CMD ["cat", "/srv/app/work/told"]' "$dir" || true
    local layers=true
    # A commit a line takes longer than all else in the quick share.
    [ "$quick" = no ] || layers=false
    check "buildah bud, layers=$layers" as buildah bud -q --layers="$layers" --pull-never -t localhost/bud:1 "$dir/out/context" || return 0
    equal "what it runs" told "$(inside localhost/bud:1)" || true
    equal "what it holds" '/srv/app 2775 0:0
/srv/app/deep 750 0:0
/srv/app/deep/two 644 0:0
/srv/app/link 777 0:0
/srv/app/old 755 0:0
/srv/app/old/new 644 0:0
/srv/app/one 644 0:0
/srv/app/owned 755 1234:1234
/srv/app/owned/one 644 1234:1234
/srv/app/work 755 1234:1234
/srv/app/work/told 644 0:0
/srv/app/work/who-again 644 1234:1234
/srv/app/work/whoever 644 1234:1234' "$(inside localhost/bud:1 find /srv/app -exec stat -c '%n %a %u:%g' {} + | sort | sed 's/\(old\|owned\) 2/\1 /')" || true
    if [ "$quick" = no ]; then
        check "again, and every layer is a known one" as buildah bud --layers --pull-never -t localhost/bud:2 "$dir/out/context" || true
        equal "all lines but FROM from the cache" 13 "$(grep -c 'Using cache' "$dir/last" || true)" || true
    fi
    manifest localhost/bud:1 >"$dir/tree-bud" || true
}

# here_and_there NAME COMMAND...: image 3 comes into a storage of its own by COMMAND, and is what it was here.
here_and_there() {
    local name=$1 home=$party reference=$dir/tree-3
    shift
    enter "$home-elsewhere" "$who" "$mount_program"
    if check "$name" as "$@"; then
        equal "$name: the tree is the same" "$(cat "$reference")" "$(manifest "$there")" || true
    fi
    as podman rmi -fa >/dev/null || true
    enter "$home" "$who" "$mount_program"
}

step_save() {
    local format
    for format in docker-archive oci-archive; do
        check "podman save --format $format" as podman save -q --format "$format" -o "$dir/out/$format.tar" localhost/l3:1 || continue
        there=localhost/l3:1
        here_and_there "podman load of the $format" podman load -q -i "$dir/out/$format.tar"
        rm -f "$dir/out/$format.tar"
    done
}

step_oci() {
    check "skopeo copy containers-storage: oci:" as skopeo copy -q "containers-storage:localhost/l3:1" "oci:$dir/out/oci:l3" || return 0
    # As root in any case: only root can give files away to all the owners. umoci does not keep the times of
    # directories that later layers change; those are the run's own in the story.
    check "umoci unpack" timeout -k 10 300 umoci unpack --image "$dir/out/oci:l3" "$dir/unpacked" || return 0
    equal "umoci unpacks the same tree" "$(comparable "$dir/tree-3")" \
        "$(python3 "$here/manifest.py" "$dir/unpacked/rootfs" "$since" "${left_out[@]}" | comparable -)" || true
    rm -rf "$dir/unpacked" "$dir/out/oci"
}

# Without the root directory, whose own line is not in every layer.
comparable() { sed 1d "$1"; }

step_registry() {
    local pid port=5017
    mkdir -p "$dir/registry"
    cat >"$dir/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
YAML
    docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 </dev/null &
    pid=$!
    sleep 1
    if check "podman push" as podman push -q --tls-verify=false localhost/l3:1 "127.0.0.1:$port/t/l3:1"; then
        there=127.0.0.1:$port/t/l3:1
        here_and_there "podman pull" podman pull -q --tls-verify=false "$there"
    fi
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    rm -rf "$dir/registry"
}

# A real installation. Inside, apt finds the mirrors that mmdebstrap wrote down, by the machine's own network,
# and this machine's proxies.
step_apt() {
    apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https)::(Proxy|proxy|CA)' >"$work/apt-proxies" || true
    chmod 0644 "$work/apt-proxies"
    local flags=(--network=host --pull=never -v "$work/apt-proxies:/etc/apt/apt.conf.d/99machine:ro" -e DEBIAN_FRONTEND=noninteractive)
    check "a Debian root with apt is imported" as podman import -q --change 'CMD ["/bin/sh"]' "$work/apt.tar" localhost/apt:1 || return 0
    check "apt-get install git" as podman run --name apt "${flags[@]}" localhost/apt:1 sh -ec 'apt-get update
        apt-get install -y --no-install-recommends git libdigest-sha-perl
        git init -q /repo; cd /repo
        git config user.name story; git config user.email story@localhost
        cp -a /usr/share/perl5 .; git add -A; git commit -qm one
        git mv perl5 perl; rm -r perl/Git*; git add -A; git commit -qm two; git gc -q' || {
        remove apt
        return 0
    }
    check "committed" as podman commit -q apt localhost/git:1 || return 0
    check "git finds its repository whole" inside localhost/git:1 sh -ec 'cd /repo; git fsck --full; test -z "$(git status --porcelain)"; git checkout -q HEAD~1; test -d perl5; test ! -e perl' || true
    equal "dpkg finds every file as it was packed" "" "$(inside localhost/git:1 sh -c 'dpkg --verify; dpkg --audit')" || true
    check "and it can be removed" inside --network=none localhost/git:1 sh -ec 'dpkg --purge git; test ! -e /usr/bin/git; test ! -e /usr/lib/git-core/git' || true
    check "removed" remove apt || true
}
