#!/bin/sh
# at-commit.sh COMMIT DIR: the chart and images of an earlier commit, for upgrade tests on the running sandbox.
# Checks COMMIT out into DIR (a git worktree; `git worktree remove DIR` ends it), builds the operator's and the optimizer's
# images from it under tags of their own and loads them. Prints `chart PATH`, `operator IMAGE` and `optimizer IMAGE`.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 COMMIT DIR" >&2; exit 2; }
commit=$1 dir=$2
root=$(cd "$(dirname "$0")/.." && pwd)
if ! hash=$(git -C "$root" rev-parse --quiet --verify "$commit^{commit}"); then
    echo "at-commit: this clone has no commit or tag $commit" >&2
    if [ "$(git -C "$root" rev-parse --is-shallow-repository)" = true ]; then
        echo "at-commit: the clone is shallow: run \`git fetch --unshallow --tags\`" >&2
    else
        echo "at-commit: run \`git fetch --tags\`, or check the name" >&2
    fi
    exit 1
fi
[ ! -e "$dir" ] || { echo "at-commit: $dir exists: remove it (\`git worktree remove\`) or name another folder" >&2; exit 1; }
git -C "$root" worktree prune
git -C "$root" worktree add --quiet --detach "$dir" "$hash"
dir=$(cd "$dir" && pwd)
echo "chart $dir/charts/model-rollout-operator"
python=${PYTHON:-$root/.cache/venv/bin/python}
for target in operator optimizer; do
    name=modelrollout-$target-$(printf %.12s "$hash")
    image=$(PYTHONPATH="$root/tools" "$python" -m sandbox load-own-image --target "$target" "$name" "$dir")
    echo "$target $image"
done
