# Times the unpacking of an image through containerd, beside containerd's own overlayfs: a line `TIMED unpack VELLUM BESIDE` (ms).
#
#   unpack.sh IMAGE RUNS     IMAGE is an archive of the image `life:test`
. "$ENGINES/engine.sh"
image=${1:?} runs=${2:?}
name=docker.io/library/life:test

# unpacked SNAPSHOTTER : the milliseconds until an image whose blobs are there already can be mounted.
unpacked() {
    local start end
    ctr images import --no-unpack "$image" >/dev/null
    mkdir -p "$WORK/mnt"
    sync
    start=$(date +%s%N)
    ctr images mount --snapshotter "$1" "$name" "$WORK/mnt" >/dev/null
    end=$(date +%s%N)
    echo $(((end - start) / 1000000))
    ctr images unmount --rm --snapshotter "$1" "$WORK/mnt" >/dev/null
    ctr images rm --sync "$name" >/dev/null
}
median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }

start_server
start_containerd
for n in $(seq "$runs"); do
    unpacked overlayfs >>beside.ms
    unpacked vellum >>vellum.ms
    say "overlayfs: $(tail -n 1 beside.ms) ms, vellum: $(tail -n 1 vellum.ms) ms"
done
echo "TIMED unpack $(median <vellum.ms) $(median <beside.ms)"
assert_empty
stop_containerd
