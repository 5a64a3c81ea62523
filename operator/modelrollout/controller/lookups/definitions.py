"""Whether the definitions (CRDs) that the API server serves have all fields of this operator.

Helm and GitOps tools often leave old definitions in place when they upgrade an operator. The API
server then prunes the new fields of every object in silence.
"""

from __future__ import annotations

import logging
import time

from modelrollout.crdgen.served import pruned_fields
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import MODEL_DEPLOYMENT
from modelrollout.problem import Problem
from modelrollout.reasons import Reason

log = logging.getLogger(__name__)

# between looks: often while a definition is outdated, since an upgrade may be under way
CHECK_SECONDS, OUTDATED_SECONDS = 300.0, 15.0
_NAMED = 5  # fields that a message names


class Definitions:
    """The comparison as of the last look; before it, and where the document cannot be read, every
    definition counts as current.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._pruned: dict[str, tuple[str, ...]] = {}
        self._looked = 0.0

    async def compare(self) -> bool:
        """Look again. Returns whether anything changed since the last look."""
        self._looked = time.monotonic()
        try:
            pruned = pruned_fields(await self._kube.openapi(MODEL_DEPLOYMENT))
        except (KubeError, AttributeError, TypeError) as e:  # the latter two: no OpenAPI document
            log.warning("the definitions that the API server serves cannot be compared: %s", e)
            return False
        if pruned == self._pruned:
            return False
        before, self._pruned = self._pruned, pruned
        for kind, fields in pruned.items():
            if problem := self.problem(kind):
                log.error("%s", problem.message)
            elif before.get(kind) and not fields:
                log.info("the definition of %s is current again", kind)
        return True

    def problem(self, kind: str) -> Problem | None:
        """``DefinitionOutdated`` with the fields that the API server prunes; None: it prunes
        none.
        """
        fields = self._pruned.get(kind)
        if not fields:
            return None
        more = f" and {len(fields) - _NAMED} more" if len(fields) > _NAMED else ""
        return Problem(
            Reason.DEFINITION_OUTDATED,
            f"the definition (CRD) of {kind} is older than this operator: the API server drops"
            f" {', '.join(fields[:_NAMED])}{more}; apply crds/ of the operator's release",
        )

    def count(self) -> dict[tuple[str], int]:
        """For the metric: by kind, how many fields the API server prunes."""
        return {(kind,): len(fields) for kind, fields in self._pruned.items()}

    def is_due(self) -> bool:
        """Whether it is time to look again; to be asked every ``OUTDATED_SECONDS``."""
        period = OUTDATED_SECONDS if any(self._pruned.values()) else CHECK_SECONDS
        return time.monotonic() - self._looked >= 0.75 * period
