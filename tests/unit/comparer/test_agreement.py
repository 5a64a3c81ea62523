"""When two answers agree, as they come over the wire: JSON, or tensors as bytes behind it."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from modelrollout.comparer.agreement import UnreadableError, agree, decode
from modelrollout.contract.tasks import OutputTolerance

F = np.float32


def tolerances(**changes: Any) -> dict[str, OutputTolerance]:
    return {"y": OutputTolerance(name="y", **changes)}


def close(a: Any, b: Any, dtype: Any = F, **changes: Any) -> bool:
    return agree(
        {"y": np.array(a, dtype)}, {"y": np.array(b, dtype)}, tolerances(**changes) if changes else {}
    )


def test_json_and_binary_say_the_same() -> None:
    values = [0.5, -1.25, 3.0]
    plain = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": values}]}
    head = json.dumps(
        {
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
            ]
        }
    ).encode()
    a, b = decode(json.dumps(plain).encode(), None), decode(head + np.array(values, F).tobytes(), len(head))
    assert a["y"].shape == (1, 3) and agree(a, b, {})


def test_strings_are_compared_in_both_forms() -> None:
    text = [b"cat", b"dog"]
    raw = b"".join(struct.pack("<I", len(t)) + t for t in text)
    head = json.dumps(
        {
            "outputs": [
                {"name": "y", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
            ]
        }
    ).encode()
    binary = decode(head + raw, len(head))
    assert agree(binary, decode(head + raw, len(head)), {})
    assert not agree(binary, decode(head + raw.replace(b"dog", b"cow"), len(head)), {})


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b'{"error": "no"}', b'{"outputs": []}', b'{"outputs": [{"name": "y"}]}']
)
def test_what_is_no_answer_is_told_and_never_quoted(body: bytes) -> None:
    with pytest.raises(UnreadableError) as e:
        decode(body, None)
    assert "not json" not in str(e.value) and "no" not in str(e.value).split()


def test_a_header_length_beyond_the_body_is_no_answer() -> None:
    with pytest.raises(UnreadableError):
        decode(b'{"outputs": []', 10_000)


def test_floats_within_absolute_and_relative_tolerance_of_stable() -> None:
    assert close([1.0, 100.0], [1.0005, 100.9])
    assert not close([1.0, 100.0], [1.0, 102.0])
    assert close([0.0], [0.4], abs_tolerance=0.5) and not close(
        [0.0], [0.6], abs_tolerance=0.5, rel_tolerance=0.0
    )
    assert close([np.nan, np.inf], [np.nan, np.inf]) and not close([np.nan], [0.0])


def test_half_precision_is_compared_in_double() -> None:
    assert not close([60000.0], [59000.0], np.float16), "1.7 % is more than the tolerance"
    assert close([60000.0], [59968.0], np.float16)


def test_integers_exactly() -> None:
    assert close([3, 4], [3, 4], np.int64) and not close([3, 4], [3, 5], np.int64, abs_tolerance=10.0)


def test_argmax_is_the_class_of_every_row() -> None:
    assert close([[1.0, 9.0], [3.0, 2.0]], [[0.1, 0.2], [5.0, 1.0]], argmax=True)
    assert not close([[1.0, 9.0], [1.0, 2.0]], [[0.1, 0.2], [5.0, 1.0]], argmax=True)
    assert close([], [], argmax=True), "an empty batch has no class to differ in"


def test_other_shapes_names_or_kinds_never_agree() -> None:
    assert not close([[1.0]], [1.0])
    assert not agree({"y": np.ones(2, F)}, {"y": np.ones(2, F), "z": np.ones(1, F)}, {})
    assert not agree({"y": np.ones(2, np.int64)}, {"y": np.ones(2, F)}, {})
    assert agree({"y": np.ones(2, np.float16)}, {"y": np.ones(2, F)}, {}), (
        "another width of float is the same number"
    )


def test_a_tolerance_for_an_output_that_was_not_asked_for_has_no_say() -> None:
    assert agree({"y": np.ones(1, F)}, {"y": np.ones(1, F)}, {"z": OutputTolerance(name="z", argmax=True)})
