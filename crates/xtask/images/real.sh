#!/usr/bin/env bash
# Builds the test image out of Debian's packages: an OCI layout with the tag `test`.
#
#   real.sh real|small OUTPUT
#
# real   14 layers: a minimal Debian, python3, git, perl and gcc, then what tells a good layer store from a bad one:
#        deletions, a renamed directory, hard links, xattrs, ACLs, capabilities, device nodes, a random file of
#        256 MiB, one byte of it changed in the next layer, 10,000 small files, an opaque directory.
# small  13 layers: the same without git, perl and gcc and with smaller files, for a machine in a hurry.
#
# Both have five steps in their history that made no layer. Needs root, debootstrap, umoci and setfattr, setfacl,
# setcap; the packages come from the mirror that this machine's apt uses. OUTPUT appears whole or not at all.
set -euo pipefail

kind=${1:?real or small}
output=${2:?the folder to write}
suite=bookworm
epoch='2024-01-01T00:00:00Z'

case $kind in
    real) packages=(python3 git perl gcc) big_mib=256 files=10000 ;;
    small) packages=(python3-minimal) big_mib=8 files=2000 ;;
    *) echo "real.sh: '$kind' is neither real nor small" >&2; exit 2 ;;
esac

. "$(dirname "$0")/mirror.sh"

mkdir -p "$(dirname "$output")"
work=$(mktemp -d "$(dirname "$output")/.building-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
layout=$work/oci
bundle=$work/bundle
root=$bundle/rootfs
export TMPDIR=$work

say() { echo "$(date +%T) $kind: $*" >&2; }

# What was done to $root since the last call becomes a layer.
layer() {
    say "layer: $1"
    umoci repack --image "$layout:test" --refresh-bundle \
        --history.created "$epoch" --history.created_by "$1" "$bundle" >/dev/null
}

# A step that changes the configuration only.
step() {
    umoci config --image "$layout:test" --history.created "$epoch" --history.created_by "$*" "$@"
}

# Runs a command in the tree, with /proc and /dev of its own that vanish with it.
inside() {
    unshare --mount --propagation private sh -eu -c '
        mount -t proc proc "$0/proc"
        mount --rbind /dev "$0/dev"
        cp /etc/resolv.conf "$0/etc/resolv.conf"
        exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
    ' "$root" "$@" </dev/null >"$work/log" 2>&1 || { cat "$work/log" >&2; return 1; }
}

# What differs from build to build and helps nobody.
tidy() {
    rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
        "$root"/var/cache/ldconfig/aux-cache "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/etc/resolv.conf
}

say "packages from $mirror"
umoci init --layout "$layout"
umoci new --image "$layout:test"
step --config.cmd /bin/sh --author 'The Vellum authors'
step --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin --config.env LC_ALL=C
umoci unpack --image "$layout:test" "$bundle"

debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; exit 1; }
cp /etc/apt/apt.conf.d/*registry* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
tidy
layer "debootstrap --variant=minbase $suite"

for package in "${packages[@]}"; do
    inside sh -c "apt-get -qq update && apt-get -qq -y --no-install-recommends install $package"
    tidy
    layer "apt-get install $package"
done
if [ "$kind" = small ]; then
    # The layers that the other packages would have been: a directory becomes a file and a link, and the reverse.
    mkdir -p "$root/srv/dir-to-file/below" "$root/srv/dir-to-link"
    echo file >"$root/srv/file-to-dir"
    ln -s dir-to-link "$root/srv/link-to-dir"
    echo 1 >"$root/srv/dir-to-file/below/1"
    layer 'types, before'
    rm -r "$root/srv/dir-to-file" "$root/srv/dir-to-link" "$root/srv/file-to-dir" "$root/srv/link-to-dir"
    echo file >"$root/srv/dir-to-file"
    ln -s dir-to-file "$root/srv/dir-to-link"
    mkdir "$root/srv/file-to-dir" "$root/srv/link-to-dir"
    echo 2 >"$root/srv/link-to-dir/2"
    layer 'types, after'
fi

rm -r "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale"
rm "$root/etc/motd" "$root/usr/bin/chage"
layer 'rm -r /usr/share/doc /usr/share/man /usr/share/locale /etc/motd /usr/bin/chage'

mv "$root/usr/share/zoneinfo" "$root/usr/share/zones" 2>/dev/null || mv "$root/usr/share/keyrings" "$root/usr/share/zones"
layer 'mv of a directory'

mkdir -p "$root/opt/links/deep/er"
echo 'one file, many names' >"$root/opt/links/first"
for n in $(seq 1 20); do ln "$root/opt/links/first" "$root/opt/links/deep/er/name-$n"; done
ln "$root/bin/sh" "$root/opt/links/sh" 2>/dev/null || true
layer 'hard links'

mkdir -p "$root/opt/attributes/dir"
echo x >"$root/opt/attributes/file"
setfattr -n user.colour -v blue "$root/opt/attributes/file"
setfattr -n user.binary -v 0x0001fe00ff "$root/opt/attributes/dir"
setfattr -n trusted.note -v kept "$root/opt/attributes/file"
setfacl -m u:1234:rwx,g:4321:r-x "$root/opt/attributes/file"
setfacl -m u:1234:rwx -dm u:77:r-x "$root/opt/attributes/dir"
cp "$root/bin/true" "$root/opt/attributes/capable"
setcap cap_net_raw,cap_net_bind_service+ep "$root/opt/attributes/capable"
cp "$root/bin/true" "$root/opt/attributes/setuid"
chown 12:34 "$root/opt/attributes/setuid"
chmod 6755 "$root/opt/attributes/setuid"
chown -h 4294967294:65534 "$root/opt/attributes/dir"
layer 'xattrs, ACLs, capabilities, owners'

mkdir -p "$root/opt/nodes"
mknod -m 666 "$root/opt/nodes/null" c 1 3
mknod -m 660 "$root/opt/nodes/loop7" b 7 7
mkfifo -m 640 "$root/opt/nodes/pipe"
ln -s ../../../../../../etc/passwd "$root/opt/nodes/outside"
ln -s "$(printf 'long/%.0s' $(seq 1 50))" "$root/opt/nodes/long-link"
long=$(printf 'n%.0s' $(seq 1 200))
mkdir -p "$root/opt/nodes/$long/$long"
printf 'deep\n' >"$root/opt/nodes/$long/$long/file"
printf 'latin\n' >"$root/opt/nodes/$(printf 'caf\351')"
touch -d '1969-12-31T23:59:58.25Z' "$root/opt/nodes/$long/$long/file"
layer 'device nodes, a pipe, links, long names'


mkdir -p "$root/opt/big"
# The same random bytes on every machine: a fixed key stream.
openssl enc -aes-128-ctr -nosalt -K 00112233445566778899aabbccddeeff -iv 0 </dev/zero 2>/dev/null \
    | head -c "${big_mib}M" >"$root/opt/big/random" || true
truncate -s 64M "$root/opt/big/sparse"
printf 'in the middle' | dd of="$root/opt/big/sparse" bs=1 seek=33554432 conv=notrunc status=none
layer "a random file of $big_mib MiB, a sparse one"

printf '\125' | dd of="$root/opt/big/random" bs=1 seek=1048577 conv=notrunc status=none
layer 'one byte of it changed'

mkdir -p "$root/opt/many"
(
    cd "$root/opt/many"
    for n in $(seq 0 99); do mkdir "$n"; done
    awk -v files="$files" 'BEGIN { for (n = 0; n < files; n++) { f = (n % 100) "/" n; printf "file %d\n", n > f; close(f) } }'
)
layer "$files small files"

# An opaque directory: what lower layers have in /etc/apt is gone, though no whiteout names it.
step --config.label org.example.purpose=test
step --config.workingdir /root
step --config.user 0:0
say 'layer: an opaque directory'
mkdir "$work/apt"
echo 'nothing from below' >"$work/apt/only"
umoci insert --image "$layout:test" --opaque --history.created "$epoch" --history.created_by 'an opaque directory' \
    "$work/apt" /etc/apt
umoci gc --layout "$layout"

rm -rf "$output"
mv "$layout" "$output"
say "done: $(du -sh "$output" | cut -f 1)"
