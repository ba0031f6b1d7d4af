#!/bin/bash
# Builds the disk that holds the programs with which the Linux guest works on its data disk. It is a small /usr with
# Debian's mkfs.ext4, e2fsck and sqlite3, the libraries they need, and fio, which is built from Debian's source: the
# package's own links 80 MB of cluster file systems. Called by package lab in a mount namespace of its own.
#
# in:   OUT (directory), BASE (OUT of base.sh), SOURCES (a sources.list)
# out:  OUT/tools.img
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
root=$OUT/root
tools=$OUT/tools
mount --make-rprivate /

cp -a --reflink=auto "$BASE/root" "$root"
mount -t proc proc "$root/proc"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" # nothing starts inside the build
chmod 755 "$root/usr/sbin/policy-rc.d"
{ printf '%s\n' "$SOURCES"; sed 's/^deb /deb-src /' <<< "$SOURCES"; } > "$root/etc/apt/sources.list"
chroot "$root" apt-get -q update
chroot "$root" apt-get -qy --no-install-recommends install e2fsprogs sqlite3 dpkg-dev gcc libc6-dev libaio-dev

mkdir "$root/build"
chroot "$root" sh -ec '
	cd /build
	apt-get -q -o APT::Sandbox::User=root source fio
	cd fio-*/
	./configure --build-static --disable-native
	make -s -j"$(nproc)" fio
	strip fio'

mkdir -p "$tools"/{bin,sbin,lib64}
cp "$root"/build/fio-*/fio "$root/usr/bin/sqlite3" "$tools/bin/"
cp "$root"/usr/sbin/{mkfs.ext4,e2fsck} "$tools/sbin/"
# A guest's loader looks for libraries where Debian has them; /lib64 in its initramfs is a link to here.
chroot "$root" ldd /usr/bin/sqlite3 /usr/sbin/mkfs.ext4 /usr/sbin/e2fsck |
	grep -o '/[^ ]*\.so[^ ]*' | sort -u |
	while read -r lib; do
		case $lib in
		/lib64/*) cp -L "$root$lib" "$tools/lib64/" ;;
		*) install -D -m 644 "$root$lib" "$tools/lib/x86_64-linux-gnu/${lib##*/}" ;;
		esac
	done
umount "$root/proc"

mkfs.ext4 -q -F -m 0 -O ^has_journal -N 64 -d "$tools" "$OUT/tools.img" "$(($(du -s --apparent-size --block-size=1M "$tools" | cut -f1) + 4))M"
rm -r "$root" "$tools"
