"""Resolve the dependencies in pyproject.toml into requirements/*.txt: exact versions of everything,
for the images, for development and for the site of the documentation.

Run it with a bare Python 3.11 (`make pins`), on the platform of the images. It takes the newest
versions that fit, not the present pins.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The Jobs import these of the operator's dependencies, and no others.
SHARED = ("pydantic", "python-json-logger", "pyyaml")


def resolve(name: str, *requirements: str, constraints: Path | None = None) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        *requirements,
    ]
    if constraints:
        command += ["--constraint", str(constraints)]
    report = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    versions = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    versions.pop("model-rollout-operator", None)
    target = ROOT / "requirements" / f"{name}.txt"
    target.write_text("".join(f"{package}=={version}\n" for package, version in sorted(versions.items())))
    sys.stdout.write(f"{target.relative_to(ROOT)}: {len(versions)} packages\n")
    return target


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = [d for d in project["project"]["dependencies"] if d.startswith(SHARED)]
    operator = resolve("operator", ".")
    extras = project["project"]["optional-dependencies"]
    job = resolve("job", *shared, *extras["job"])
    trees = resolve("trees", *shared, *extras["job"], *extras["trees"], constraints=job)
    trainer = resolve("trainer", *shared, *extras["job"], *extras["train"], constraints=trees)
    tensorflow = resolve("tensorflow", *shared, *extras["job"], *extras["tensorflow"], constraints=trainer)
    resolve("pytorch", *shared, *extras["job"], *extras["pytorch"], constraints=job)
    together = ROOT / "requirements" / ".all.txt"
    together.write_text(
        "".join(
            sorted(
                {
                    line
                    for pins in (operator, trees, trainer, tensorflow)
                    for line in pins.read_text().splitlines(keepends=True)
                }
            )
        )
    )
    try:
        resolve(
            "dev",
            ".[cli,job,train,trees,tensorflow]",
            *project["dependency-groups"]["dev"],
            constraints=together,
        )
    finally:
        together.unlink()
    resolve("docs", *project["dependency-groups"]["docs"])


if __name__ == "__main__":
    main()
