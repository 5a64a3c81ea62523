"""``python -m modelrollout.crdgen [--check] [--out DIR]...``: write the CRDs, or say that the
committed ones have drifted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from modelrollout.crdgen.kinds import KINDS, Kind, crd
from modelrollout.generated import put

HEADER = "# Written by `python -m modelrollout.crdgen` from operator/modelrollout/api; do not edit.\n"
# The chart installs its own copy, byte for byte the same.
DEFAULT_OUT = (Path("crds"), Path("charts/model-rollout-operator/files/crds"))


class _Dumper(yaml.SafeDumper):
    """Without anchors, and with the key order of the source."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def render(kind: Kind) -> str:
    """The file of a kind."""
    return HEADER + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=140, allow_unicode=True)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 when --check finds drift."""
    parser = argparse.ArgumentParser(prog="python -m modelrollout.crdgen", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        help=f"folder to write to, more than once if wanted (default: {', '.join(map(str, DEFAULT_OUT))})",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 when a file differs from what would be written",
    )
    args = parser.parse_args(argv)
    folders: list[Path] = args.out or list(DEFAULT_OUT)

    files = {folder / kind.file_name: render(kind) for folder in folders for kind in KINDS}
    complaint = "is not up to date with the types; run: python -m modelrollout.crdgen"
    return put(files, check=args.check, complaint=complaint)


if __name__ == "__main__":
    sys.exit(main())
