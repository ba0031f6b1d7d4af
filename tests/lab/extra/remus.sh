#!/bin/bash
# Builds xl once more from Debian's source of Xen, with libnl: Debian's own build lacks the network buffering of Remus.
# The build lies beside Debian's, under /opt/remus, and shares its state (/var/lib/xen, /run/xen) and hotplug scripts.
# Called by package lab in a mount namespace of its own.
#
# in:   OUT (directory), BASE (OUT of base.sh), SOURCES (a sources.list)
# out:  OUT/remus.tar (/opt/remus with the packages that it needs as /opt/remus/debs, and Remus' script for the network)
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
root=$OUT/root
mount --make-rprivate /

cp -a --reflink=auto "$BASE/root" "$root"
mount -t proc proc "$root/proc"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" # nothing starts inside the build
chmod 755 "$root/usr/sbin/policy-rc.d"
{ printf '%s\n' "$SOURCES"; sed 's/^deb /deb-src /' <<< "$SOURCES"; } > "$root/etc/apt/sources.list"
chroot "$root" apt-get -q update
chroot "$root" apt-get -qy --no-install-recommends install dpkg-dev autoconf automake gcc libc6-dev make bison flex pkg-config perl python3-dev acpica-tools \
	libnl-3-dev libnl-route-3-dev uuid-dev libyajl-dev zlib1g-dev libbz2-dev liblzma-dev libncurses-dev libaio-dev \
	libglib2.0-dev libpixman-1-dev libssl-dev libfdt-dev

mkdir "$root/build"
chroot "$root" sh -ec '
	cd /build
	# The newest that the archive still has. The interface to the hypervisor is one for all of 4.17.
	for version in $(apt-cache showsrc xen | sed -n "s/^Version: //p" | sort -rV); do
		apt-get -q -o APT::Sandbox::User=root source "xen=$version" && break
	done
	cd xen-*/
	cp /usr/share/automake-*/config.guess /usr/share/automake-*/config.sub .
	./autogen.sh
	./configure --prefix=/opt/remus --sysconfdir=/etc --localstatedir=/var --with-rundir=/run \
		--disable-docs --disable-stubdom --disable-seabios --disable-ovmf --disable-rombios --disable-ipxe --disable-ocamltools \
		--disable-golang --disable-xsmpolicy --disable-qemu-traditional --disable-pvshim \
		--with-system-qemu=/bin/true --with-system-seabios=/bin/true --with-system-ovmf=/bin/true > /dev/null
	grep -q "^LIBNL3_LIBS.*-lnl-route-3" config/Tools.mk
	for part in include libs xl; do
		make -s -j"$(nproc)" -C tools/$part debug=n
		make -s -C tools/$part install DESTDIR=/build/out debug=n
	done'

out=$root/build/out/opt/remus
strip --strip-unneeded "$out"/lib/*.so.* "$out"/sbin/xl "$out"/lib/xen/bin/*
rm -rf "$out"/include "$out"/share "$out"/lib/*.a "$out"/lib/pkgconfig "$root"/build/out/etc
# What its script for the network calls, and the libraries of both.
mkdir "$out/debs"
chroot "$root" sh -c 'cd /build/out/opt/remus/debs && apt-get -q -o APT::Sandbox::User=root download net-tools libnl-utils \
	libnl-3-200 libnl-cli-3-200 libnl-genl-3-200 libnl-idiag-3-200 libnl-nf-3-200 libnl-route-3-200 libnl-xfrm-3-200'
# The script reads its neighbours, which Debian has.
install -D -m 755 -t "$root/build/out/etc/xen/scripts" "$root"/build/xen-*/tools/hotplug/Linux/remus-netbuf-setup
umount "$root/proc"
tar -C "$root/build/out" -cf "$OUT/remus.tar" opt etc
rm -r "$root"
