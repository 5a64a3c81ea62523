#!/bin/sh
# stores.sh DIR: real servers of stores in DIR, for `make test-stores`. Needs Go and npm; does nothing when it is current.
set -eu
dir=$1
FAKE_GCS=github.com/fsouza/fake-gcs-server@v1.56.1
AZURITE=azurite@3.35.0
REGISTRY=github.com/distribution/distribution/v3/cmd/registry@v3.1.2
key=$(sha256sum < "$0" | cut -c1-16)
[ -f "$dir/.ready-$key" ] && exit 0
for program in go npm; do
    command -v $program >/dev/null || { echo "stores: needs $program: install it" >&2; exit 1; }
done
rm -rf "$dir"; mkdir -p "$dir"
echo "stores: building in $dir, ten minutes on two cores" >&2
for module in $FAKE_GCS $REGISTRY; do
    GOBIN=$dir CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false go install "$module"
done
npm install --prefix "$dir" --no-audit --no-fund --ignore-scripts --silent "$AZURITE"
touch "$dir/.ready-$key"
