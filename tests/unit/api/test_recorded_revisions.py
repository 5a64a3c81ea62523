"""The names of revisions never change: those here were made before affinity and tolerations had a
schema, by the code of that time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec, same_version

# The code of that time took what is empty for something that the spec says.
WITH_EMPTY_PARTS = ("keys in another order", "empty affinity", "empty parts", "no tolerations")
RECORDED = json.loads((Path(__file__).parent / "recorded_revisions.json").read_text())


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["about"])
def test_the_same_words_are_the_same_version(case: dict[str, Any]) -> None:
    spec = ModelDeploymentSpec.model_validate(case["spec"])
    recorded, user_input = spec.user_input_as_written(), spec.user_input()
    assert names.short_hash(recorded, 64) == case["input"]
    assert names.revision_name("ml", "digits", recorded, "a" * 64) == case["revision"]
    assert same_version(user_input, json.loads(json.dumps(user_input)))
    assert same_version(user_input, json.loads(json.dumps(recorded)))
    assert (user_input == recorded) is (case["about"] not in WITH_EMPTY_PARTS)
