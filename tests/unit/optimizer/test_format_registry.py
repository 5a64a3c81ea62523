"""The optimizer's table of formats, and what the operator knows of them, agree."""

from __future__ import annotations

from typing import get_args

from modelrollout.config import ImagesConfig
from modelrollout.contract.formats import FLAVOUR_BY_FORMAT, Flavour, SourceFormat
from modelrollout.optimizer.formats.registry import BY_NAME, FORMATS


def test_every_format_but_onnx_is_in_the_table_once() -> None:
    assert sorted(f.name for f in FORMATS) == sorted(set(get_args(SourceFormat)) - {"ONNX"})
    assert BY_NAME.keys() == FLAVOUR_BY_FORMAT.keys()


def test_every_flavour_has_an_image_and_a_format() -> None:
    flavours = set(get_args(Flavour))
    assert {f.flavour for f in FORMATS} == flavours
    assert flavours <= ImagesConfig.model_fields.keys()
