#!/bin/sh
# at-commit.sh COMMIT DIR: the chart and images of an earlier commit, for upgrade tests on the running
# sandbox. Checks COMMIT out into DIR (a git worktree; `git worktree remove DIR` ends it), builds the
# operator's and the optimizer's images from it under tags of their own and loads them. Prints
# `chart PATH`, `operator IMAGE` and `optimizer IMAGE`. If it fails, DIR is removed again.
set -eu
fail() { echo "at-commit: $1" >&2; exit 1; }

[ $# -eq 2 ] || { echo "usage: $0 COMMIT DIR" >&2; exit 2; }
commit=$1 dir=$2
case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.cache/venv/bin/python}

shallow=$(git -C "$root" rev-parse --is-shallow-repository 2>/dev/null) ||
    fail "$root is no clone, so it has no earlier commits: clone the repository"
if ! hash=$(git -C "$root" rev-parse --quiet --verify "$commit^{commit}"); then
    [ "$shallow" = false ] ||
        fail "the clone is shallow and has no commit or tag $commit: run \`git fetch --unshallow --tags\`"
    fail "this clone has no commit or tag $commit: run \`git fetch --tags\`, or check the name"
fi
[ ! -e "$dir" ] || fail "$dir exists: remove it (\`git worktree remove\`) or name another folder"
[ -x "$python" ] || fail "no Python environment at $python: run \`make venv\`"

git -C "$root" worktree prune
trap 'git -C "$root" worktree remove --force "$dir"' EXIT
trap 'exit 1' HUP INT TERM
git -C "$root" worktree add --quiet --detach "$dir" "$hash"
echo "chart $dir/charts/model-rollout-operator"
for target in operator optimizer; do
    name=modelrollout-$target-$(printf %.12s "$hash")
    image=$(PYTHONPATH="$root/tools" "$python" -m sandbox load-own-image --target "$target" "$name" "$dir")
    echo "$target $image"
done
trap - EXIT
