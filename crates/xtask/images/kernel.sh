#!/usr/bin/env bash
# Fetches a kernel of Debian's for throwaway machines, with the modules that tests of storage need.
#
#   kernel.sh SUITE OUTPUT
#
# SUITE   trixie, trixie-backports…: its newest kernel for cloud machines
# OUTPUT  vmlinuz; modules/lib/modules/VERSION, unpacked and with their dependencies; appears whole or not at all
#
# Needs no root, and leaves the machine's own apt alone: lists and state lie in a folder of this script's.
set -euo pipefail

suite=${1:?a suite of Debian}
output=${2:?the folder to write}
. "$(dirname "$0")/mirror.sh"

mkdir -p "$(dirname "$output")"
work=$(mktemp -d "$(dirname "$output")/.building-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/unpacked" "$work/done/modules"
: >"$work/apt/status"
# The packages are verified as those of the machine's own sources are: by the keys of Debian's that the machine has.
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $suite main" >"$work/apt/sources.list"
options=(-o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::Lists=$work/apt/lists" -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache"
    -o APT::Sandbox::User=root -qq)
echo "$(date +%T) kernel of $suite" >&2
apt-get "${options[@]}" update >&2
# What the newest one is called; from Linux 7 on it comes in several packages.
depends() { apt-cache "${options[@]}" show --no-all-versions "$1" | sed -n 's/^Depends: //p' | grep -o "$2" | sort -u; }
package=$(depends linux-image-cloud-amd64 'linux-image-[0-9][^ ,]*' | head -n 1)
release=${package#linux-image-}
mapfile -t parts < <(depends "$package" "linux-\(base\|binary\|modules\)-$release")
(cd "$work" && apt-get "${options[@]}" download "$package" "${parts[@]}" >&2)
for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/unpacked"; done

from=$work/unpacked/usr/lib/modules/$release
[ -d "$from" ] || from=$work/unpacked/lib/modules/$release
to=$work/done/modules/lib/modules/$release
for folder in arch/x86/crypto arch/x86/lib crypto lib fs/overlayfs fs/erofs fs/squashfs fs/btrfs fs/xfs fs/netfs fs/fuse drivers/md drivers/block; do
    [ -d "$from/kernel/$folder" ] || continue
    mkdir -p "$to/kernel/$(dirname "$folder")"
    cp -r "$from/kernel/$folder" "$to/kernel/$folder"
done
cp "$from"/modules.order "$from"/modules.builtin "$from"/modules.builtin.modinfo "$to"
# Unpacked, since the machine's own decompression would be emulated.
find "$to" -name '*.xz' -print0 | xargs -0 -r xz -d
find "$to" -name '*.zst' -print0 | xargs -0 -r zstd -q -d --rm
busybox depmod -b "$work/done/modules" "$release"
cp "$(find "$work/unpacked" -type f -name 'vmlinuz*' | head -n 1)" "$work/done/vmlinuz"
mv "$work/done" "$output"
