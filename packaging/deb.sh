#!/usr/bin/env bash
# Makes a Debian package from a release build: programs, user units, man page, completions, licences.
# Usage: packaging/deb.sh [TARGET_FOLDER]   (default: target/release)
set -euo pipefail
cd "$(dirname "$0")/.."
built="${1:-${CARGO_TARGET_DIR:-target}/release}"
for program in mneme mnemed; do
  [ -x "$built/$program" ] || { echo "error: $built/$program is missing; build it with: cargo build --release -p mneme-daemon -p mneme-cli" >&2; exit 1; }
done
command -v dpkg-deb >/dev/null || { echo "error: dpkg-deb is not installed (Debian: apt install dpkg)" >&2; exit 1; }
version="$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)"
architecture="$(dpkg --print-architecture)"
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
install -Dm755 -t "$root/usr/bin" "$built/mneme" "$built/mnemed"
if [ -x "$built/mneme-engine" ] && [ -d .assets/libtorch/lib ]; then
  # The engine and its libraries lie together, so that no other program picks them up.
  install -Dm755 -t "$root/usr/lib/mneme" "$built/mneme-engine"
  cp -L .assets/libtorch/lib/*.so* "$root/usr/lib/mneme/"
  printf '#!/bin/sh\nLD_LIBRARY_PATH=/usr/lib/mneme exec /usr/lib/mneme/mneme-engine "$@"\n' >"$root/usr/bin/mneme-engine"
  chmod 755 "$root/usr/bin/mneme-engine"
fi
install -Dm644 -t "$root/usr/lib/systemd/user" systemd/mneme.socket systemd/mneme.service
sed -i -e '/^# Mneme for one user\. @MNEMED@/,/^\[Unit\]/{/^#/d}' -e 's|@MNEMED@|/usr/bin/mnemed|' -e 's|@STATE@|%h/.local/state/mneme|' "$root"/usr/lib/systemd/user/mneme.*
if grep -rn '@[A-Z]*@' "$root/usr/lib/systemd/user"; then echo "error: a unit has a place that was not filled in" >&2; exit 1; fi
install -Dm644 -t "$root/usr/share/doc/mneme" README.md PROTOCOL.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE config/default.toml
mkdir -p "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions"
"$built/mneme" man | gzip -9n >"$root/usr/share/man/man1/mneme.1.gz"
"$built/mneme" completions bash >"$root/usr/share/bash-completion/completions/mneme"
"$built/mneme" completions zsh >"$root/usr/share/zsh/vendor-completions/_mneme"
mkdir -p "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: mneme
Version: $version
Architecture: $architecture
Maintainer: The Mneme authors <mneme@localhost>
Section: utils
Priority: optional
Depends: libc6, libgcc-s1
Recommends: libstdc++6, libgomp1
Installed-Size: $(du -sk "$root" | cut -f1)
Description: memory that lasts for the agents on your machine
 A local service that remembers, recalls with sources, writes from memory and fits its generator to its user.
 It runs per user, without network, behind a Unix socket. 'mneme doctor' says what is missing.
CONTROL
out="mneme_${version}_${architecture}.deb"
dpkg-deb --root-owner-group --build "$root" "$out" >/dev/null
echo "$out ($(du -h "$out" | cut -f1))"
