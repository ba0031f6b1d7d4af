#!/bin/bash
# Builds the disk of a lab host from what base.sh made: configuration, the lab's agent, a guest. Called by package lab.
#
# in:   OUT (directory), BASE (OUT of base.sh), FILES (the files/ beside this script), VMLINUX (the kernel unpacked),
#       AGENT and WORKLOAD (static programs), TOOLS (disk image of tools.sh), SIZE (of the disk); for the benchmark also
#       STOCK (OUT of extra/stock.sh) and REMUS (archive of extra/remus.sh)
# out:  OUT/dom0.img, OUT/initramfs
set -euo pipefail
export LC_ALL=C
root=$OUT/root
kernel=$(cat "$BASE/kernel-version")
cp -a --reflink=auto "$BASE/root" "$root"

# initramfs FILE DIR MODULE... packs DIR with busybox and the modules, in the order in which they must be loaded.
initramfs() {
	local file=$1 dir=$2 n=10
	shift 2
	mkdir -p "$dir"/{bin,sbin,proc,sys,dev,mnt,lib/modules}
	cp /bin/busybox "$dir/bin/"
	for applet in sh mount insmod switch_root ip cat sleep poweroff; do ln -s busybox "$dir/bin/$applet"; done
	for module in "$@"; do modprobe -S "$kernel" -d "$BASE/root" --show-depends "$module"; done |
		awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
		while read -r path; do cp "$path" "$dir/lib/modules/$n-${path##*/}"; n=$((n + 1)); done
	(cd "$dir" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible) > "$file"
	rm -r "$dir"
}

# The guest.
lab=$root/var/lib/xlft-lab
mkdir -p "$lab" "$OUT/guest"/{bin,sbin,data,tmp,usr}
ln -s usr/lib64 "$OUT/guest/lib64" # on the tools disk, which the workload mounts at /usr
install -m 755 "$FILES/guest/init" "$OUT/guest/init"
install -m 755 "$WORKLOAD" "$OUT/guest/bin/workload"
printf '#!/bin/sh\nexec /bin/busybox poweroff -f\n' > "$OUT/guest/sbin/poweroff" # what the kernel runs for "xl shutdown"
chmod 755 "$OUT/guest/sbin/poweroff"
initramfs "$lab/initramfs" "$OUT/guest" xen-netfront xen-blkfront crc32c_generic ext4
install -m 644 "$VMLINUX" "$lab/vmlinux"
install -m 644 "$TOOLS" "$lab/tools.img"
install -m 644 "$FILES/guest/linux.cfg" "$lab/linux.cfg"

# The host.
install -m 755 "$AGENT" "$root/usr/local/sbin/labagent"
install -m 755 "$FILES/host/lab-network" "$root/usr/local/sbin/lab-network"
install -m 755 "$FILES/host/vif-lab" "$root/etc/xen/scripts/vif-lab"
install -m 644 -t "$root/etc/systemd/system" "$FILES/host/lab-network.service" "$FILES/host/labagent.service"
install -m 644 "$FILES/host/modules.conf" "$root/etc/modules-load.d/lab.conf"
install -m 644 "$FILES/host/modprobe.conf" "$root/etc/modprobe.d/lab.conf"
install -m 644 "$FILES/host/sysctl.conf" "$root/etc/sysctl.d/lab.conf"
install -D -m 644 "$FILES/host/journald.conf" "$root/etc/systemd/journald.conf.d/lab.conf"
install -m 644 "$FILES/host/xl.conf" "$root/etc/xen/xl.conf"
echo 'XENCONSOLED_ARGS="--log=guest --log-dir=/var/log/xen/console"' >> "$root/etc/default/xen"
mkdir -p "$root/var/log/xen/console"
echo '/dev/vda / ext4 noatime 0 1' > "$root/etc/fstab"
rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id" "$root/etc/hostname" # given on the kernel command line
cat > "$root/etc/hosts" <<'HOSTS'
127.0.0.1 localhost
::1 localhost
10.20.0.2 A a
10.20.0.3 B b
10.20.0.1 world
HOSTS

for unit in lab-network labagent xen; do
	systemctl --root="$root" enable --quiet "$unit" || chroot "$root" systemctl enable --quiet "$unit"
done
# What takes time at boot and does nothing for the lab.
systemctl --root="$root" --quiet mask \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
	systemd-tmpfiles-clean.timer systemd-udev-trigger.service systemd-udev-settle.service systemd-logind.service \
	systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pstore.service \
	systemd-user-sessions.service systemd-ask-password-wall.path systemd-ask-password-console.path \
	getty.target getty@tty1.service serial-getty@hvc0.service console-getty.service nbd-client.service xendomains.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount \
	modprobe@configfs.service modprobe@drm.service modprobe@fuse.service modprobe@efi_pstore.service \
	systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service systemd-network-generator.service \
	systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-firstboot.service systemd-sysusers.service \
	systemd-machine-id-commit.service systemd-journal-flush.service modprobe@dm_mod.service modprobe@loop.service \
	hwclock.service hwclock.sh.service systemd-remount-fs.service systemd-fsck-root.service
systemctl --root="$root" --quiet set-default multi-user.target

if [ -n "${STOCK:-}" ]; then
	cp --sparse=always "$STOCK/stock.img" "$STOCK/stock-initramfs" "$lab/"
	tar -C "$root" --no-same-owner -xf "$REMUS"
	chroot "$root" sh -c 'dpkg -i /opt/remus/debs/*.deb'
	rm -r "$root/opt/remus/debs"
	ln -s libnl-3 "$root/usr/lib/x86_64-linux-gnu/libnl" # where Debian's libnl-utils looks for its modules
	printf '%s\n' cls_u32 >> "$root/etc/modules-load.d/lab.conf"
fi

mkdir "$OUT/host"
install -m 755 "$FILES/host/initramfs-init" "$OUT/host/init"
initramfs "$OUT/initramfs" "$OUT/host" virtio_pci virtio_blk crc32c_generic ext4
# mkfs takes the tree as it is: owners, modes, holes.
truncate -s "$SIZE" "$OUT/dom0.img"
mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" "$OUT/dom0.img"
rm -r "$root"
