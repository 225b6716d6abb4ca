#!/bin/busybox sh
# The installer that a node netboots. It takes its orders from the kernel's command line alone:
#   turnaround.token=..   turnaround.sha256=..   turnaround.report=URL   image=URL
# It touches the disk only once the whole image is here and is the one that was ordered.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev && mount -t tmpfs tmp /tmp

say() { echo "installer: $*" >/dev/console; }
restart() { sync; reboot -f; }
# A report is a courtesy: who does not hear it asks an operator later.
# Not by -T: busybox 1.35 as Debian 12 has it (busybox-static) then ends by a segmentation fault.
report() {
    [ -n "$reports" ] || return 0
    for try in 1 2 3; do timeout 5 wget -q -O /dev/null --post-data "$2" "$reports/$1" && return; sleep 1; done
    say "could not report $1"
}
give_up() { say "gives up: $*"; report failed "$*"; restart; }
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p"; }

for module in /lib/drivers/*.ko; do insmod "$module" || give_up "no driver $module"; done
token=$(word turnaround.token)
sha256=$(word turnaround.sha256)
image=$(word image)
reports=$(word turnaround.report)
say "started with token $token"
[ -n "$token" ] && [ -n "$sha256" ] && [ -n "$image" ] || give_up "no orders"
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 || give_up "no network"
report started ""

wget -q -O /tmp/image "$image" || give_up "could not fetch $image"
found=$(sha256sum /tmp/image | cut -d' ' -f1)
[ "$found" = "$sha256" ] || give_up "the image has SHA-256 $found, and $sha256 was ordered"

say "writes the disk"
dd if=/tmp/image of=/dev/vda bs=1M conv=fsync 2>/dev/null || give_up "could not write the disk"
blockdev --rereadpt /dev/vda && mount -t ext4 /dev/vda2 /mnt || give_up "what was written is no system"
mkdir -p /mnt/etc/turnaround
echo "{\"token\": \"$token\", \"sha256\": \"$found\"}" >/mnt/etc/turnaround/installed
umount /mnt || give_up "could not write the mark"
say "installed"
report installed ""
restart
