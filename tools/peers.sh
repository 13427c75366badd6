#!/bin/sh
# Installs the independent peers that some tests speak to, and compiles OpenIGTLink's own example programs into
# .peers/bin. Says what it cannot do, and then ends with 1. May be run again: does only what is missing.
set -eu
cd "$(dirname "$0")/.."

# dcmtk, orthanc: DICOM; plastimatch: DRR and RTSTRUCT; chromium: the browser display.
PACKAGES='dcmtk orthanc plastimatch chromium openigtlink-examples libopenigtlink-dev cmake g++'
EXAMPLES=/usr/share/doc/openigtlink-examples/examples
PEERS=$PWD/.peers

say() { printf 'peers: %s\n' "$*" >&2; }

missing() {
    for package in $PACKAGES; do
        state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || printf '%s ' "$package"
    done
}

if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    say "this machine has no apt-get; install the likes of: $PACKAGES"
    exit 1
fi

lacking=$(missing)
if [ -n "$lacking" ]; then
    if [ "$(id -u)" -ne 0 ]; then
        say "not root, so nothing was installed. Run: sudo apt-get install --no-install-recommends $lacking"
        say "and then make peers again; tests that need these are skipped until then"
        exit 1
    fi
    say "installing $lacking"
    export DEBIAN_FRONTEND=noninteractive
    # With run level 1 Debian's maintainer scripts start no service: tests start their own Orthanc on a free port.
    RUNLEVEL=1
    export RUNLEVEL
    apt-get -qq update
    # shellcheck disable=SC2086  # a list of words
    apt-get -qq install --yes --no-install-recommends $lacking >/dev/null
fi

version=$(dpkg-query -W -f='${Version}' libopenigtlink-dev)
if [ "$(cat "$PEERS/version" 2>/dev/null || true)" = "$version" ]; then
    say "the OpenIGTLink examples of $version are in .peers/bin"
    exit 0
fi
if [ ! -d "$EXAMPLES" ]; then
    say "$EXAMPLES is missing although openigtlink-examples is installed: this dpkg leaves out documentation"
    say "(path-exclude in /etc/dpkg/dpkg.cfg.d); reinstall with: apt-get install --reinstall -o Dpkg::Options::=--path-include=/usr/share/doc/openigtlink-examples/* openigtlink-examples"
    exit 1
fi

say "compiling the OpenIGTLink examples of $version"
rm -rf "$PEERS"
mkdir -p "$PEERS/bin"
cp -R "$EXAMPLES" "$PEERS/source"
find "$PEERS/source" -name '*.gz' -exec gunzip {} +
log=$PEERS/build.log
if ! { cmake -S "$PEERS/source" -B "$PEERS/build" -DCMAKE_BUILD_TYPE=Release &&
    cmake --build "$PEERS/build" --parallel 2; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "the examples do not compile; the whole log is $log"
    exit 1
fi
find "$PEERS/build" -type f -perm -u+x ! -path '*/CMakeFiles/*' ! -name '*.so*' -exec cp {} "$PEERS/bin/" \;
printf '%s\n' "$version" >"$PEERS/version"
say "$(ls "$PEERS/bin" | wc -l) programs are in .peers/bin"
