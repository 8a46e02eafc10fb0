#!/bin/busybox sh
# The first process of a throwaway machine: brings up what a test needs, runs /job/run, says how that ended, and switches off.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /proc /sys /run /tmp /root /etc /sbin
# Where the kernel looks for it, to load the module of a file system when the first is mounted.
ln -sf /bin/busybox /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "vellum-vm: up, Linux $(uname -r)"
mkdir -p /dev/disk /dev/shm
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
ln -s /proc/mounts /etc/mtab
modprobe virtio_blk
modprobe loop
# The disks of the job by their names; the one that is always there has what this kernel's ext4 can do.
for disk in /sys/block/vd*; do
    ln -s "/dev/${disk##*/}" "/dev/disk/$(cat "$disk/serial")"
done
mkfs.ext4 -q -O verity -E lazy_itable_init=1,lazy_journal_init=1 /dev/disk/tmp && mount -t ext4 /dev/disk/tmp /tmp
/job/run
echo "vellum-vm: exit $?"
umount /tmp
poweroff -f
