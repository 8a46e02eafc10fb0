# Sourced by the scripts here: starts servers and engines, and ends them.
#
# WORK is the folder for everything; VELLUM the command; DRIVER its driver; SAMPLES the folder of sample configurations.
# SERVER, if set, is served instead of VELLUM: a command in which ROOT and SOCKET stand for its folder and its socket.
set -euo pipefail
cd "$WORK"
store=$WORK/store
plug=$WORK/vellum.sock

say() { echo "$(date +%T) $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
vellum() { "$VELLUM" --root "$store" --driver "$DRIVER" "$@"; }

# What went wrong is in the logs.
trap 'code=$?; [ $code = 0 ] || { for log in "$WORK"/*.log; do echo "--- $log"; tail -n ${LOG_LINES:-15} "$log"; done; } >&2' EXIT

# says LINE COMMAND… : the command succeeds and prints the line, a regular expression, among others.
says() {
    local line=$1 printed
    shift
    printed=$("$@" 2>&1) || fail "$*: $printed"
    grep -qx -e "$line" <<<"$printed" || fail "\`$*\` does not print '$line' but: $printed"
}

# wait_for SECONDS COMMAND… : until the command succeeds.
wait_for() {
    local last=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $last ] || fail "this never succeeded: $*"
        sleep 0.05
    done
}

start_server() {
    rm -f "$plug"
    if [ -n "${SERVER:-}" ]; then
        mkdir -p "$store"
        local command=${SERVER//ROOT/$store}
        ${command//SOCKET/$plug} >>server.log 2>&1 &
    else
        "$VELLUM" --root "$store" --driver "$DRIVER" serve containerd --socket "$plug" >>server.log 2>&1 &
    fi
    server=$!
    wait_for 20 test -S "$plug"
}

stop_server() {
    kill "-${1:-TERM}" "$server"
    wait "$server" 2>/dev/null || [ "${1:-TERM}" = KILL ] || fail "the server ended with $?"
}

# 1 or 2: which of the samples this containerd takes.
generation() {
    case $(containerd --version) in *' 2.'* | *' v2.'*) echo 2 ;; *) echo 1 ;; esac
}

# start_containerd [MORE] : with the sample configuration that it takes, at places of this test's own. With MORE, a file of more configuration, it also
# serves Kubernetes.
start_containerd() {
    containerd --version
    local sample=containerd-$(generation).toml more=${1:-/dev/null} without="'io.containerd.internal.v1.opt'"
    [ $# -gt 0 ] || without="$without, 'io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime'"
    mkdir -p containerd
    {
        # The sample begins with the version, which must stand before all else.
        sed -n '/^version/p' "$SAMPLES/$sample"
        echo "root = '$WORK/containerd/root'"
        echo "state = '$WORK/containerd/state'"
        echo "disabled_plugins = [$without]"
        echo "[grpc]"
        echo "address = '$WORK/containerd.sock'"
        sed -e '/^version/d' -e "s|/run/vellum/containerd.sock|$plug|" -e "s|/var/lib/vellum|$store|" "$SAMPLES/$sample" "$more"
    } >containerd/config.toml
    containerd --config containerd/config.toml >>containerd.log 2>&1 &
    containerd=$!
    export CONTAINERD_ADDRESS=$WORK/containerd.sock
    wait_for 20 ctr version
}

stop_containerd() {
    kill "$containerd"
    wait "$containerd" || true
}

# Nothing is left: no snapshot, and with Vellum no layer, no mount and nothing in the trash.
assert_empty() {
    wait_for 20 no_snapshots
    [ -z "${SERVER:-}" ] || return 0
    # What is deleted is worked off while the server runs.
    wait_for 60 no_layers
    stop_server
    vellum check >check.log 2>&1 || fail "check: $(cat check.log)"
    ! grep -F "$store" /proc/self/mountinfo || fail "mounts are left"
}
no_snapshots() { [ "$(ctr snapshots --snapshotter vellum ls | wc -l)" = 1 ]; }
no_layers() {
    [ -z "$(find "$store"/layers/*/ "$store"/trash/*/ "$store"/tmp -mindepth 1 -maxdepth 1 2>/dev/null | head -n 1)" ]
}
