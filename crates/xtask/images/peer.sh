#!/usr/bin/env bash
# Installs the container engines of a later Debian into a folder, to be used as a root directory.
#
#   peer.sh SUITE OUTPUT
#
# trixie  containerd 1.7
# forky   containerd 2.x, Docker's engine 28 or later, buildx
#
# Needs root and debootstrap; the packages come from the mirror that this machine's apt uses. Nothing is started.
# OUTPUT appears whole or not at all.
set -euo pipefail

suite=${1:?trixie or forky}
output=${2:?the folder to write}
case $suite in
    trixie) packages=containerd,runc ;;
    forky) packages=containerd,runc,docker.io,docker-cli,docker-buildx ;;
    *) echo "peer.sh: '$suite' is neither trixie nor forky" >&2; exit 2 ;;
esac
. "$(dirname "$0")/mirror.sh"

mkdir -p "$(dirname "$output")"
work=$(mktemp -d "$(dirname "$output")/.building-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
echo "$(date +%T) $suite: $packages" >&2
# debootstrap puts a start-stop-daemon in place that starts nothing. A suite that is younger than debootstrap itself is installed
# as unstable is.
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
unshare --mount --propagation private debootstrap --variant=minbase --include="$packages" \
    "$suite" "$work/root" "$mirror" "$script" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
rm -rf "$work/root/var/cache/apt" "$work/root/var/lib/apt/lists"
mkdir -p "$work/root/var/cache/apt/archives/partial" "$work/root/var/lib/apt/lists/partial"
mv "$work/root" "$output"
