# Times the unpacking of an image beside containerd's own overlayfs: through containerd, one layer after the other, a line `TIMED unpack VELLUM BESIDE` (ms), and as
# containerd 2.2 does it, by the appliers of this containerd: `TIMED rebase VELLUM BESIDE`.
#
#   unpack.sh IMAGE RUNS PROGRAM UNPACKS     IMAGE is an archive of the image `life:test`; UNPACKS of its layers are applied at once
. "$ENGINES/engine.sh"
image=${1:?} runs=${2:?} program=${3:?} unpacks=${4:?}
name=docker.io/library/life:test

# timed COMMAND… : its milliseconds. The image's blobs are there already; what was deleted before is gone.
timed() {
    local start end
    ctr images import --no-unpack "$image" >/dev/null
    mkdir -p "$WORK/mnt"
    wait_for 120 no_layers
    sync
    start=$(date +%s%N)
    "$@" >/dev/null
    end=$(date +%s%N)
    echo $(((end - start) / 1000000))
}
# unpacked SNAPSHOTTER : until the image can be mounted.
unpacked() {
    timed ctr images mount --snapshotter "$1" "$name" "$WORK/mnt"
    ctr images unmount --rm --snapshotter "$1" "$WORK/mnt" >/dev/null
    ctr images rm --sync "$name" >/dev/null
}
rebased() {
    timed "$program" unpack "$CONTAINERD_ADDRESS" "$plug" "$name" "$unpacks"
    "$program" clear "$plug"
    ctr images rm --sync "$name" >/dev/null
}
median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }

start_server
start_containerd
for n in $(seq "$runs"); do
    unpacked overlayfs >>beside.ms
    unpacked vellum >>vellum.ms
    rebased >>rebased.ms
    say "overlayfs: $(tail -n 1 beside.ms) ms, vellum: $(tail -n 1 vellum.ms) ms, all layers at once: $(tail -n 1 rebased.ms) ms"
done
echo "TIMED unpack $(median <vellum.ms) $(median <beside.ms)"
echo "TIMED rebase $(median <rebased.ms) $(median <beside.ms)"
assert_empty
stop_containerd
