#!/bin/busybox sh
# A node's initrd: on to the system on its disk.
export PATH=/bin
busybox mount -t proc proc /proc && busybox mount -t devtmpfs dev /dev
for module in /lib/drivers/*.ko; do busybox insmod "$module" || echo "node: no driver $module" >/dev/console; done
busybox mount -t ext4 /dev/vda2 /mnt || echo "node: no system on the disk" >/dev/console
busybox umount /proc
exec busybox switch_root /mnt /sbin/init
