# Containers are made, written to and removed through containerd by many clients at once, while the snapshotter is killed.
#
#   churn.sh IMAGE PROGRAM CLIENTS CONTAINERS KILLS
. "$ENGINES/engine.sh"
image=${1:?} program=${2:?} clients=${3:?} containers=${4:?} kills=${5:?}
name=docker.io/library/life:test

start_server
start_containerd
ctr images import --snapshotter vellum "$image" >/dev/null
"$program" "$CONTAINERD_ADDRESS" vellum "$name" "$clients" "$containers" >done.out 2>churn.log &
churn=$!
killed=0 each=$((containers / (kills + 1)))
while kill -0 $churn 2>/dev/null; do
    if [ $killed -lt "$kills" ] && [ "$(wc -l <done.out)" -ge $(((killed + 1) * each)) ]; then
        killed=$((killed + 1))
        say "kill $killed, after $(wc -l <done.out) containers"
        stop_server KILL
        start_server
    fi
    sleep 0.01
done
wait $churn || fail "$(cat churn.log)"
[ "$killed" = "$kills" ] || fail "the server was killed $killed times, not $kills"
[ "$(sort -n done.out | uniq | wc -l)" = "$containers" ] || fail "not all containers were made"
say "$containers containers by $clients clients, $killed kills"
ctr images rm --sync "$name" >/dev/null
# What containerd could not collect while the server was away it does not try again before another snapshot goes.
swept() {
    key=sweep-$RANDOM
    ctr snapshots --snapshotter vellum prepare "$key" >/dev/null || true
    ctr snapshots --snapshotter vellum rm "$key" || true
    ctr leases create --id "$key" >/dev/null || true
    ctr leases rm --sync "$key" >/dev/null || true
    no_layers
}
wait_for 60 swept
assert_empty
stop_containerd
