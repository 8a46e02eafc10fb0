#!/usr/bin/env bash
# Builds three root file systems of one Debian, each by itself, as three people would: what one of them takes is known; what is alike in all three is for
# the store to find.
#
#   systems.sh OUTPUT
#
# Needs root and debootstrap; the packages come from the mirror that this machine's apt uses. OUTPUT has the folders
# `python`, `perl` and `curl`, and appears whole or not at all.
set -euo pipefail

output=${1:?the folder to write}
. "$(dirname "$0")/mirror.sh"

mkdir -p "$(dirname "$output")"
work=$(mktemp -d "$(dirname "$output")/.building-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir "$work/systems"
for package in python3-minimal perl curl; do
    echo "$(date +%T) systems: $package" >&2
    root=$work/systems/${package%%3*}
    unshare --mount --propagation private debootstrap --variant=minbase --include="$package" \
        bookworm "$root" "$mirror" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
    rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists" "$root/debootstrap"
    mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial"
done
mv "$work/systems" "$output"
