# Pods, as a kubelet has them: asked for over the container runtime interface, on the host's network.
#
#   kubernetes.sh IMAGE PAUSE PROGRAM [users]     PAUSE is an archive of an image that does nothing; with `users` also a pod in a user namespace
. "$ENGINES/engine.sh"
image=${1:?} pause=${2:?} program=${3:?} users=${4:-}
export CONTAINERD_NAMESPACE=k8s.io
name=docker.io/library/life:test
logs=$WORK/logs
mkdir -p "$logs"
# Who is root in a user namespace goes through it.
chmod 0711 "$WORK"
cri() { "$program" "$CONTAINERD_ADDRESS" "$@"; }

# The sample, the image of pods, figures every second, and a network for pods.
configuration() {
    if [ "$(generation)" = 1 ]; then
        cat "$SAMPLES/kubernetes-1.toml"
        echo '[plugins."io.containerd.grpc.v1.cri"]'
        echo "sandbox_image = 'docker.io/library/pause:test'"
        echo "stats_collect_period = 1"
        # Not every root may spare a pod from the kernel when it is out of memory.
        echo "restrict_oom_score_adj = true"
        echo '[plugins."io.containerd.grpc.v1.cri".cni]'
    else
        sed '/^snapshotter/a stats_collect_period = 1' "$SAMPLES/kubernetes-2.toml"
        echo '[plugins."io.containerd.cri.v1.images".pinned_images]'
        echo "sandbox = 'docker.io/library/pause:test'"
        echo '[plugins."io.containerd.cri.v1.runtime"]'
        echo "restrict_oom_score_adj = true"
        echo '[plugins."io.containerd.cri.v1.runtime".cni]'
    fi
    echo "conf_dir = '$WORK/cni'"
    echo "bin_dir = '$WORK/cni/bin'"
}
# A network for pods, in which there is nothing.
write_network() {
    mkdir -p cni/bin
    cat >cni/bin/nothing <<'END'
#!/bin/sh
[ "$CNI_COMMAND" != VERSION ] || exec echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}'
echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/"}],"ips":[{"version":"4","address":"10.0.0.2/24","interface":0}]}'
END
    chmod +x cni/bin/nothing
    cp cni/bin/nothing cni/bin/loopback
    echo '{"cniVersion":"0.4.0","name":"nothing","plugins":[{"type":"nothing"}]}' >cni/nothing.conflist
}
# has_written CONTAINER : the room of its own layer is known.
has_written() {
    local place bytes inodes
    read -r place bytes inodes <<<"$(cri stats "$1")"
    [ "$bytes" -gt 100000 ] && [ "$inodes" -gt 1 ] && cri list-stats | grep -q "^$1 $bytes "
}
# has_room : images take some, where Vellum keeps them: what a kubelet asks how full it is.
has_room() {
    local place bytes inodes
    read -r place bytes inodes <<<"$(cri fs | tee fs.log)"
    [ "$bytes" -gt 1000000 ] && [ "$inodes" -gt 10 ] && [ "$(realpath -e "$place")" = "$(realpath "$store")" ]
}

start_server
write_network
configuration >more.toml
if [ "$(generation)" = 1 ]; then
    # As the sample says it.
    mkdir -p containerd/root
    ln -s "$store" containerd/root/io.containerd.snapshotter.v1.vellum
fi
start_containerd more.toml
wait_for 20 cri ready
cri version
say images
for archive in "$image" "$pause"; do ctr images import --snapshotter vellum "$archive" >/dev/null; done
for tag in "$name" docker.io/library/pause:test; do wait_for 20 cri image "$tag"; done

say pod
pod=$(cri pod one "$logs")
writes=$(cri create "$pod" writes "$logs" "$name" rw -- /bin/sh -c 'while true; do sleep 1; done')
cri start "$writes"
says 'two in' cri exec "$writes" /bin/sh -c 'echo $(cat /layer-2 /d2/inside)'
cri exec "$writes" /bin/dd if=/dev/zero of=/written bs=1024 count=200
reads=$(cri create "$pod" reads "$logs" "$name" ro -- /bin/sh -c 'while true; do sleep 1; done')
cri start "$reads"
says two cri exec "$reads" /bin/cat /layer-2
if cri exec "$reads" /bin/touch /x 2>/dev/null; then fail "a read-only root file system can be written to"; fi
wait_for 30 has_written "$writes"
wait_for 30 has_room
say "$(cri fs)"

say "the server is killed while the pod runs"
stop_server KILL
start_server
# containerd 1.6 notices only with a failing call that the server is another one.
wait_for 20 ctr snapshots --snapshotter vellum ls
cri exec "$writes" /bin/sh -c 'test -e /written && rm /layer-1 && mkdir /d && mv /layer-2 /d/moved'
says 'two' cri exec "$writes" /bin/cat /d/moved
says two cri exec "$reads" /bin/cat /layer-2
later=$(cri create "$pod" later "$logs" "$name" rw -- /bin/sh -c 'echo done >/done; cat /done /layer-1')
cri start "$later"
wait_for 20 grep -q 'F one' "$logs/later.log"

if [ -n "$users" ]; then
    say "users of its own"
    mapped=$(cri pod mapped "$logs" users)
    inside=$(cri create "$mapped" inside "$logs" "$name" rw users -- /bin/sh -c 'while true; do sleep 1; done')
    cri start "$inside"
    says '0 100000 65536' cri exec "$inside" /bin/sh -c 'echo $(cat /proc/self/uid_map)'
    says '0 0' cri exec "$inside" /bin/sh -c 'touch /new; echo $(busybox stat -c %u /layer-2 /new)'
    cri stop "$inside"
    cri remove "$inside"
    cri stop-pod "$mapped"
    cri remove-pod "$mapped"
fi

say remove
for container in "$writes" "$reads" "$later"; do
    cri stop "$container"
    cri remove "$container"
done
cri stop-pod "$pod"
cri remove-pod "$pod"
for tag in "$name" docker.io/library/pause:test; do cri remove-image "$tag"; done
assert_empty
stop_containerd
