#!/bin/bash
# Builds the part of a lab host that takes long and changes rarely: a Debian root with Xen's tools, and beside it
# the hypervisor and the kernel. Called by package lab in a mount namespace of its own.
#
# in:   OUT (empty directory), SUITE, MIRROR, SOURCES (a sources.list, security suite included), PACKAGES, XEN_PACKAGE
# out:  OUT/root, OUT/xen, OUT/vmlinuz, OUT/kernel-version, OUT/packages.txt
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
root=$OUT/root
mount --make-rprivate /

# No documentation, no translations; a build that is cut short is thrown away, so fsync buys nothing.
mkdir -p "$root/etc/dpkg/dpkg.cfg.d"
cat > "$root/etc/dpkg/dpkg.cfg.d/lab" <<'CFG'
force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/info/*
CFG

debootstrap --variant=minbase "$SUITE" "$root" "$MIRROR"

mount -t proc proc "$root/proc"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" # nothing starts inside the build
chmod 755 "$root/usr/sbin/policy-rc.d"
printf '%s\n' "$SOURCES" > "$root/etc/apt/sources.list"
chroot "$root" apt-get -q update
chroot "$root" apt-get -qy --no-install-recommends dist-upgrade
# shellcheck disable=SC2086
chroot "$root" apt-get -qy --no-install-recommends install $PACKAGES

# The kernel and the hypervisor are unpacked rather than installed: as packages they would bring an initramfs
# generator and a boot loader.
kernel=$(chroot "$root" apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: linux-image-//p' | head -1)
mkdir "$OUT/debs"
mkdir "$root/debs"
chroot "$root" sh -c "cd /debs && apt-get -q -o APT::Sandbox::User=root download linux-image-$kernel $XEN_PACKAGE"
for deb in "$root"/debs/*.deb; do
	dpkg-deb -f "$deb" Package Version Architecture | paste -s -d ' ' | sed 's/[A-Za-z]*: //g' >> "$OUT/unpacked.txt"
	dpkg-deb -x "$deb" "$OUT/debs"
done
rm -r "$root/debs"
echo "$kernel" > "$OUT/kernel-version"
cp "$OUT/debs/boot/vmlinuz-$kernel" "$OUT/vmlinuz"
gunzip -c "$OUT"/debs/boot/xen-4.*-amd64.gz > "$OUT/xen"

# Drivers of hardware that an emulated host can't have are nine tenths of the modules.
cp -a "$OUT/debs/lib/modules" "$root/usr/lib/"
modules=$root/usr/lib/modules/$kernel/kernel
rm -rf "$modules"/sound "$modules"/net/{wireless,bluetooth,mac80211,can,nfc,rfkill,sctp,tipc,rds,smc,batman-adv} "$modules"/drivers/{gpu,media,infiniband,staging,usb,hid,iio,input,hwmon,i2c,mmc,mtd,leds,platform,power,bluetooth,isdn,firewire,thunderbolt,edac,comedi,rtc,spi,watchdog,accel,gnss,nfc,soundwire,regulator,pinctrl,gpio,scsi,ata,nvme} \
	"$modules"/drivers/net/{wireless,ethernet,can,usb,wwan,phy,arcnet,fddi,hamradio,ieee802154,mdio,dsa}
depmod -b "$root" "$kernel"
rm -r "$OUT/debs"

{ chroot "$root" dpkg-query -W -f '${Package} ${Version} ${Architecture}\n'; cat "$OUT/unpacked.txt"; } | sort > "$OUT/packages.txt"
rm "$OUT/unpacked.txt" "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/{apt,debconf,ldconfig}/* "$root"/usr/share/{man,locale,info,doc} "$root"/var/log/*.log
umount "$root/proc"
