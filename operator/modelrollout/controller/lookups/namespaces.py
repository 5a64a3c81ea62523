"""Labels of namespaces, for policies that choose by them. Read one by one, so that the right to get
is enough, and only while some policy asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Forbidden, KubeError, NotFound
from modelrollout.kube.kinds import NAMESPACE
from modelrollout.kube.objects import labels_of

log = logging.getLogger(__name__)

FRESH = timedelta(seconds=30)  # how long a removed label may still count


class Namespaces:
    """What ``refresh`` has read, at most FRESH ago."""

    def __init__(self, kube: Kube, now: Callable[[], datetime]) -> None:
        self._kube, self._now = kube, now
        self._known: dict[str, tuple[datetime, Mapping[str, str] | None]] = {}
        self._warned = False

    def labels(self, namespace: str) -> Mapping[str, str] | None:
        """As last read; None where they are not known, or may not be read."""
        return self._known.get(namespace, (None, None))[1]

    async def refresh(self, namespace: str) -> None:
        """Read the labels of the namespace, unless they are fresh. Known labels stay while the API
        server does not answer.
        """
        now, before = self._now(), self._known.get(namespace)
        if before is not None and now - before[0] < FRESH:
            return
        try:
            live = await self._kube.get(NAMESPACE, None, namespace)
        except NotFound:
            self._known.pop(namespace, None)
        except Forbidden as e:
            self._known[namespace] = (now, None)
            if not self._warned:
                log.warning("policies with selector.namespaceLabels hold for every namespace: %s", e.message)
            self._warned = True
        except KubeError as e:
            log.warning("labels of namespace %s: %s", namespace, e)
            self._known[namespace] = (now, before[1] if before else None)
        else:
            self._known[namespace] = (now, labels_of(live))
