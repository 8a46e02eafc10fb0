#!/usr/bin/env bash
# Runs a script with processes and mounts of its own: whatever it starts ends with it, also when it is killed.
#
#   enter.sh ROOT WORK SCRIPT [ARGUMENT…]
#
# ROOT is / or a folder with another system in it, which is not changed: what is written to it goes to memory. WORK is
# the same folder inside and outside. Engines and stores live below it, and not in memory or on an overlay.
set -euo pipefail

if [ "${1:?}" != --inside ]; then
    exec unshare --mount --pid --fork --kill-child --propagation private --mount-proc bash "$0" --inside "$@"
fi
shift
root=$1 work=$2 script=$(realpath "$3")
shift 3
export ENGINES=$(dirname "$script")

# The sockets and state that engines put here by themselves are this script's own.
if [ "$root" = / ]; then
    mount -t tmpfs run /run
    exec bash "$script" "$@"
fi

memory=$work/enter
mkdir -p "$memory"
mount -t tmpfs memory "$memory"
mkdir "$memory/upper" "$memory/work" "$memory/root"
new=$memory/root
mount -t overlay -o "lowerdir=$root,upperdir=$memory/upper,workdir=$memory/work" overlay "$new"
mount -t proc proc "$new/proc"
mount --rbind /sys "$new/sys"
mount --rbind /dev "$new/dev"
mount -t tmpfs run "$new/run"
mount -t tmpfs tmp "$new/tmp"
for path in "$work" "$ENGINES" ${ENTER_BIND:-}; do
    if [ -d "$path" ]; then mkdir -p "$new$path"; else mkdir -p "$(dirname "$new$path")"; touch "$new$path"; fi
    mount --bind "$path" "$new$path"
done
cd "$new"
# Which ctr binds into containers.
touch etc/hosts etc/resolv.conf
mkdir -p old
pivot_root . old
umount -l old
cd "$work"
exec bash "$script" "$@"
