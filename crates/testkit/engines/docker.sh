# A container's life through Docker's engine on its containerd image store, and a build.
#
#   docker.sh IMAGE [RUNS]     with RUNS the build is timed beside containerd's own overlayfs: a line `TIMED build VELLUM BESIDE` (ms)
. "$ENGINES/engine.sh"
image=${1:?} runs=${2:-0}
export DOCKER_HOST=unix://$WORK/docker.sock HOME=$WORK/home

# The sample for /etc/docker/daemon.json with this test's places, and the snapshotter that is given.
start_docker() {
    mkdir -p docker
    sed -e "s|/run/containerd/containerd.sock|$CONTAINERD_ADDRESS|" -e "s|\"vellum\"|\"$1\"|" "$SAMPLES/docker-29-containerd-store.json" >docker/daemon.json
    dockerd --config-file docker/daemon.json --data-root "$WORK/docker/root" --exec-root "$WORK/docker/run" \
        --pidfile "$WORK/docker/pid" --host "$DOCKER_HOST" --bridge=none --iptables=false --ip6tables=false \
        >>docker.log 2>&1 &
    docker=$!
    wait_for 30 docker info
    says "Storage Driver: $1" docker info --format 'Storage Driver: {{.Driver}}'
}

stop_docker() {
    kill "$docker"
    wait "$docker" || true
}

# Twenty steps that change the configuration only, between two that make a layer.
write_context() {
    mkdir -p context
    echo first >context/a
    echo second >context/b
    {
        echo "FROM life:test"
        echo "COPY a /a"
        for n in 1 2 3 4 5 6 7 8 9 10; do printf 'ENV E%s=%s\nARG A%s=%s\n' $n $n $n $n; done
        echo "COPY b /b"
    } >context/Dockerfile
}

load() { docker load --quiet --input "$image" >/dev/null; }
build() { docker build --no-cache --quiet --network host --tag built:1 context >build.out 2>&1 || fail "build: $(cat build.out)"; }

# timed_build : the milliseconds of a build.
timed_build() {
    local start end
    start=$(date +%s%N)
    build
    end=$(date +%s%N)
    echo $(((end - start) / 1000000))
}
median() { sort -n | sed -n "$(((runs + 1) / 2))p"; }

start_server
start_containerd
start_docker vellum
dockerd --version

say load
load
say run
says two docker run --rm --network host life:test cat /layer-2
docker run --detach --name two --network host life:test sh -c 'while true; do sleep 1; done' >/dev/null
docker exec two sh -c 'echo written >/written; rm /layer-1; mkdir /d; mv /layer-2 /d/moved'
for line in 'A /written' 'D /layer-1' 'A /d/moved'; do says "$line" docker diff two; done
docker cp two:/written written.out
says written cat written.out
say commit
docker commit two committed:1 >/dev/null
docker rm --force two >/dev/null
says written docker run --rm --network host committed:1 sh -c 'cat /written; test ! -e /layer-1'
say save
docker save --output saved.tar committed:1
docker create --name three committed:1 true >/dev/null
docker export --output exported.tar three
says d/moved tar -tf exported.tar
docker rm three >/dev/null
docker rmi committed:1 >/dev/null
docker load --quiet --input saved.tar >/dev/null
says two docker run --rm --network host committed:1 cat /d/moved
say build
write_context
build
says 'first second 10' docker run --rm --network host built:1 sh -c 'echo $(cat /a /b) $E10'

# BuildKit reads what a step changed out of the snapshot's own folder: a changed owner must not cost a file its data.
printf 'FROM life:test\nRUN busybox chown 7:7 /layer-2 && mv /d2 /d3\n' >context/Dockerfile.run
docker build --no-cache --quiet --network host --tag built:2 --file context/Dockerfile.run context >build.out 2>&1 ||
    fail "build: $(cat build.out)"
says '7 two in' docker run --rm --network host built:2 sh -c 'echo $(busybox stat -c %u /layer-2) $(cat /layer-2 /d3/inside)'

if [ "$runs" -gt 0 ]; then
    for n in $(seq "$runs"); do
        timed_build >>build-vellum.ms
        stop_docker
        start_docker overlayfs
        [ "$n" -gt 1 ] || load
        timed_build >>build-beside.ms
        stop_docker
        start_docker vellum
    done
    echo "TIMED build $(median <build-vellum.ms) $(median <build-beside.ms)"
    say "vellum: $(tr '\n' ' ' <build-vellum.ms) overlayfs: $(tr '\n' ' ' <build-beside.ms)"
fi

say remove
docker image rm --force $(docker image ls --quiet --no-trunc | sort -u) >/dev/null
docker builder prune --all --force >/dev/null
stop_docker
export CONTAINERD_NAMESPACE=moby
assert_empty
stop_containerd
