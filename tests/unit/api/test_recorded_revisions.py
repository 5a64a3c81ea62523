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

RECORDED = json.loads((Path(__file__).parent / "recorded_revisions.json").read_text())


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["about"])
def test_the_same_words_are_the_same_version(case: dict[str, Any]) -> None:
    user_input = ModelDeploymentSpec.model_validate(case["spec"]).user_input()
    assert names.short_hash(user_input, 64) == case["input"]
    assert names.revision_name("ml", "digits", user_input, "a" * 64) == case["revision"]
    assert same_version(user_input, json.loads(json.dumps(user_input)))
