# Layers are unpacked all at once and joined afterwards, as containerd 2.2 does it, by the appliers of a containerd that runs: the tree is the one that containerd's own
# overlayfs snapshotter has, unpacking one after the other; and whoever is killed on the way, nothing is left and another try succeeds.
#
#   rebase.sh IMAGE PROGRAM [EVENT…]     at each of the events, client and server are killed; with a driver that cannot join layers they are refused
. "$ENGINES/engine.sh"
image=${1:?} program=${2:?}
shift 2
events=$*
name=docker.io/library/life:test

unpack() { "$program" unpack "$CONTAINERD_ADDRESS" "$plug" "$name" "$@" >>unpack.log 2>&1; }
same() {
    "$program" tree "$plug" >tree.found || fail "the tree cannot be read"
    diff -u tree.wanted tree.found >tree.diff || fail "the tree is another one ($1): $(cat tree.diff)"
}
# Whether the process has stopped itself.
stopped() { grep -q '^State:.*stopped' "/proc/$1/status"; }
# What containerd's garbage collection does.
cleared() {
    "$program" clear "$plug" || fail "what is left of an attempt cannot be removed"
    wait_for 60 no_layers
}

start_server
start_containerd
ctr images import --no-unpack "$image" >/dev/null
mkdir -p mnt
ctr images mount --snapshotter overlayfs "$name" "$WORK/mnt" >/dev/null
"$program" read "$WORK/mnt" >tree.wanted
[ "$(wc -l <tree.wanted)" -gt 10 ] || fail "the image has nothing in it"
ctr images unmount --rm --snapshotter overlayfs "$WORK/mnt" >/dev/null

say "one after the other"
unpack 1 || fail "$(cat unpack.log)"
same 'one after the other'
cleared
if ! vellum info --json | tr -d '\n ' | grep -q '"ability":"parallel-unpack","support":"yes"'; then
    ! unpack 4 || fail "layers were joined"
    grep -q "Unimplemented" unpack.log || fail "the refusal is not told: $(cat unpack.log)"
    cleared
else
    say "all at once"
    unpack 4 || fail "$(cat unpack.log)"
    same 'all at once'
    cleared
    for event in $events; do
        for who in client server; do
            say "the $who is killed: $event"
            "$program" unpack "$CONTAINERD_ADDRESS" "$plug" "$name" 4 $event >>unpack.log 2>&1 &
            client=$!
            wait_for 20 stopped $client
            if [ $who = client ]; then
                kill -KILL $client
                wait $client 2>/dev/null || true
            else
                stop_server KILL
                kill -CONT $client
                # Nothing listens: what is not committed is given up.
                ! wait $client || fail "an image is unpacked without a snapshotter"
                start_server
            fi
            # What the killed one has left is there still.
            unpack 4 || fail "$(cat unpack.log)"
            same "$event, $who"
            cleared
        done
    done
fi
ctr images rm --sync "$name" >/dev/null
assert_empty
stop_containerd
