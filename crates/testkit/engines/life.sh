# A container's life through containerd: an image comes in, containers run, write, are committed, and all goes again.
#
#   life.sh IMAGE        an archive of the image `life:test`
. "$ENGINES/engine.sh"
image=${1:?}
export CONTAINERD_SNAPSHOTTER=vellum
# ctr's own words for the snapshotter where it does not ask the environment.
on="--snapshotter vellum"
name=docker.io/library/life:test

start_server
start_containerd
say import
ctr images import $on "$image" >/dev/null
says "$name" ctr images ls -q
layers=$(ctr snapshots $on ls | grep -c Committed)
[ "$layers" -ge 3 ] || fail "only $layers layers are unpacked"

say run
says 'two new' ctr run --rm --net-host $on "$name" one /bin/sh -c 'echo new >/new; echo $(cat /layer-2 /new)'
ctr run --detach --net-host $on "$name" two /bin/sh -c 'while true; do sleep 1; done'
says written ctr tasks exec --exec-id e two \
    /bin/sh -c 'echo written >/written; rm /layer-1; mkdir /d; mv /layer-2 /d/moved; cat /written'

say "the server is killed while a container runs"
if [ -z "${SERVER:-}" ]; then
    stop_server KILL
    start_server
    # containerd 1.6 notices only with a failing call that the server is another one.
    wait_for 20 ctr snapshots $on ls
fi
says written ctr tasks exec --exec-id f two /bin/cat /written
ctr tasks kill --signal KILL two
wait_for 20 ctr tasks rm two

say diff
ctr snapshots $on diff two >two.diff
{ zcat two.diff 2>/dev/null || cat two.diff; } >two.tar
for path in written d/moved '\.wh\.layer-1'; do says "$path" tar -tf two.tar; done

say commit
ctr snapshots $on commit done two
ctr snapshots $on prepare again done >/dev/null
mkdir -p mnt
eval "$(ctr snapshots $on mounts "$WORK/mnt" again)"
[ "$(cat mnt/written)" = written ] || fail "what was committed is not there"
[ ! -e mnt/layer-1 ] || fail "what was deleted is there"
umount mnt
ctr snapshots $on usage done >usage.out
# Unlike the others, a view is not kept from garbage collection by ctr, and may be collected before it has its label.
look() { ctr snapshots $on view look done && ctr snapshots $on label look containerd.io/gc.root=now; }
wait_for 20 look
eval "$(ctr snapshots $on mounts "$WORK/mnt" look)"
if touch mnt/x 2>/dev/null; then fail "a view can be written to"; fi
umount mnt
for key in look again done; do ctr snapshots $on rm "$key"; done
ctr containers rm two

say export
ctr images export export.tar "$name"

say remove
ctr images rm --sync "$name" >/dev/null
assert_empty
stop_containerd
