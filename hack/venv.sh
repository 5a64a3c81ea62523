#!/bin/sh
# venv.sh DIR REQUIREMENTS: a virtual environment in DIR with exactly these pins; does nothing when it is current.
set -eu
dir=$1 requirements=$2
key=$(cat "$requirements" "$0" | sha256sum | cut -c1-16)
[ -f "$dir/.ready-$key" ] && exit 0
usable() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=
for p in python3.11 python3.12 python3.13 python3; do if usable "$p"; then python=$p; break; fi; done
if [ -z "$python" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "venv: installing python3 and python3-venv" >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv ca-certificates >&2
        python=python3
    else
        echo "venv: needs Python 3.11 or later with venv: install python3 and python3-venv" >&2; exit 1
    fi
fi
# The wheel of LightGBM is the only one that takes OpenMP from the system.
if grep -q '^lightgbm==' "$requirements" && ! PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null | grep -q 'libgomp\.so\.1'; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "venv: installing libgomp1" >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgomp1 >&2
    else
        echo "venv: LightGBM needs libgomp.so.1: install libgomp1" >&2; exit 1
    fi
fi
echo "venv: building $dir with $($python --version), one to three minutes" >&2
rm -rf "$dir.new"; "$python" -m venv "$dir.new"
"$dir.new/bin/python" -m pip install -q --disable-pip-version-check -r "$requirements"
rm -rf "$dir"; mv "$dir.new" "$dir"
# console scripts carry the path that they were made with
grep -lI "^#!.*$dir.new" "$dir"/bin/* 2>/dev/null | xargs -r sed -i "1s|$dir.new|$dir|"
touch "$dir/.ready-$key"
