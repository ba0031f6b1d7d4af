#!/bin/bash
# Builds a stock Debian guest: systemd, Redis, PostgreSQL and a C compiler on a root disk, and the initramfs that boots
# it with the hosts' kernel, which is Debian's. Called by package lab in a mount namespace of its own.
#
# in:   OUT (directory), BASE (OUT of base.sh), FILES (stock/ beside this script), SUITE, MIRROR, SOURCES, PACKAGES, SIZE
# out:  OUT/root (its programs serve as clients outside), OUT/stock.img, OUT/stock-initramfs
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
root=$OUT/root
kernel=$(cat "$BASE/kernel-version")
mount --make-rprivate /

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
cp -a "$BASE/root/usr/lib/modules" "$root/usr/lib/"

# Redis and PostgreSQL serve the lab's network without a password.
sed -i 's/^bind .*/bind 0.0.0.0/; s/^protected-mode .*/protected-mode no/' "$root/etc/redis/redis.conf"
pg=$(echo "$root"/etc/postgresql/*/main)
echo "listen_addresses = '*'" >> "$pg/postgresql.conf"
echo "host all all 10.20.0.0/24 trust" >> "$pg/pg_hba.conf"
install -m 644 -t "$root/etc/systemd/system" "$FILES"/*.service "$FILES"/*.socket
install -m 755 "$FILES/build-mix" "$root/usr/local/bin/build-mix"
for unit in stock-source.socket stock-sink.socket stock-build.socket stock-ready.service; do
	systemctl --root="$root" enable --quiet "$unit"
done
systemctl --root="$root" --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer systemd-timesyncd.service systemd-udev-settle.service getty@tty1.service
echo '/dev/xvda / ext4 noatime 0 1' > "$root/etc/fstab"
echo stock > "$root/etc/hostname"
rm "$root/usr/sbin/policy-rc.d"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/{apt,debconf}/* "$root"/usr/share/{man,locale,info,doc}

# PostgreSQL's data with the tables of pgbench, so that no run begins with making them.
chroot "$root" su postgres -c "
	set -e
	bin=\$(echo /usr/lib/postgresql/*/bin)
	data=\$(echo /var/lib/postgresql/*/main)
	\$bin/pg_ctl -s -w -D \$data -o '-c config_file=\$(echo /etc/postgresql/*/main/postgresql.conf) -c listen_addresses=' start
	createdb bench
	\$bin/pgbench -q -i -s 2 bench
	\$bin/pg_ctl -s -w -m fast -D \$data stop"
umount "$root/proc"

dir=$OUT/initramfs
mkdir -p "$dir"/{bin,sbin,proc,sys,dev,mnt,lib/modules}
install -m 755 "$FILES/initramfs-init" "$dir/init"
cp /bin/busybox "$dir/bin/"
for applet in sh mount insmod switch_root ip cat sleep; do ln -s busybox "$dir/bin/$applet"; done
n=10
for module in xen-netfront xen-blkfront crc32c_generic ext4; do modprobe -S "$kernel" -d "$BASE/root" --show-depends "$module"; done |
	awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
	while read -r path; do cp "$path" "$dir/lib/modules/$n-${path##*/}"; n=$((n + 1)); done
(cd "$dir" && find . | sort | cpio --quiet -o -H newc -R 0:0 --reproducible) > "$OUT/stock-initramfs"
rm -r "$dir"

truncate -s "$SIZE" "$OUT/stock.img"
mkfs.ext4 -q -F -m 0 -E lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$OUT/stock.img"
