"""Counts of right and wrong answers: idempotent, bounded in memory whatever is sent, and read by
Prometheus.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from modelrollout.feedback.items import Item

OTHER = "other"


@dataclass(frozen=True)
class Limits:
    """Bounds of the process. The longest unused is dropped first.

    A counter that is dropped and comes back starts at 0, which the analysis takes for a restart.
    ``ids`` are remembered to tell a repeated label from a new one, over all models, about 150 bytes
    each: a label sent again after so many others counts again. A model that sends many takes from
    its own share first. Slices beyond the limit are counted as ``other``. ``series`` are the
    counters of right and wrong over all models, about 400 bytes each and as much again in
    Prometheus's answer: beyond them the namespace that has most loses its longest unused model.
    """

    ids: int = 200_000
    models: int = 4096
    models_per_namespace: int = 256
    versions: int = 16
    slices: int = 32
    series: int = 20_000


@dataclass
class _Model:
    ids: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    slices: set[str] = field(default_factory=set)
    # version -> slice -> [right, wrong]
    versions: OrderedDict[int, dict[str, list[int]]] = field(default_factory=OrderedDict)


class Ledger(Collector):
    """The state of the feedback service. Not thread-safe: one event loop owns it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._models: OrderedDict[tuple[str, str], _Model] = OrderedDict()
        self._ids = 0
        self._series_of: Counter[str] = Counter()  # by namespace

    def record(self, items: Sequence[Item]) -> int:
        """Count what is new; returns how many items were duplicates of (namespace, name, version,
        id). The first one counts.
        """
        return sum(not self._record(item) for item in items)

    def _record(self, item: Item) -> bool:
        model = self._model(item.model)
        key = blake2b(f"{item.version} {item.id}".encode(errors="surrogatepass"), digest_size=16).digest()
        if key in model.ids:
            model.ids.move_to_end(key)
            return False
        model.ids[key] = None
        self._ids += 1
        if self._ids > self._limits.ids:
            self._forget_one(model)
        slices, part = self._version(item.namespace, model, item.version), self._slice(model, item.slice)
        if part not in slices:
            if self._series_of.total() >= self._limits.series:
                self._make_room(item.model)
            slices[part] = [0, 0]
            self._series_of[item.namespace] += 1
        counts = slices[part]
        counts[0 if item.right else 1] += 1
        return True

    def collect(self) -> Iterable[Metric]:
        """For the registry: ``modelrollout_feedback_total``; both results exist from the first
        label on.
        """
        family = CounterMetricFamily(
            "modelrollout_feedback",
            "Labelled answers by model version and slice; result is right or wrong.",
            # Not ``namespace``: the scrape says with that where this process runs, and a scrape
            # with honor_labels would lose it.
            labels=["model_namespace", "name", "version", "slice", "result"],
        )
        for labels, value in self._series():
            family.add_metric(labels, value)
        yield family

    def _series(self) -> Iterator[tuple[list[str], int]]:
        for (namespace, name), model in self._models.items():
            for version, slices in model.versions.items():
                for part, (right, wrong) in slices.items():
                    yield [namespace, name, str(version), part, "right"], right
                    yield [namespace, name, str(version), part, "wrong"], wrong

    def _model(self, key: tuple[str, str]) -> _Model:
        model = self._models.get(key)
        if model is None:
            of_namespace = [k for k in self._models if k[0] == key[0]]
            if len(of_namespace) >= self._limits.models_per_namespace:
                self._drop(of_namespace[0])
            elif len(self._models) >= self._limits.models:
                self._drop(next(iter(self._models)))
            model = self._models[key] = _Model()
        self._models.move_to_end(key)
        return model

    def _drop(self, key: tuple[str, str]) -> None:
        model = self._models.pop(key)
        self._ids -= len(model.ids)
        self._series_of -= Counter({key[0]: sum(len(slices) for slices in model.versions.values())})

    def _make_room(self, sender: tuple[str, str]) -> None:
        """Drop one model: the longest unused one of the namespace with most series; one of the
        sender's only if there is no other.
        """
        crowded = max(self._series_of, key=lambda namespace: self._series_of[namespace])
        others = [key for key in self._models if key != sender]
        victim = next((key for key in others if key[0] == crowded), next(iter(others), None))
        if victim:
            self._drop(victim)

    def _version(self, namespace: str, model: _Model, version: int) -> dict[str, list[int]]:
        if version not in model.versions and len(model.versions) >= self._limits.versions:
            _, gone = model.versions.popitem(last=False)
            self._series_of -= Counter({namespace: len(gone)})
        counts = model.versions.setdefault(version, {})
        model.versions.move_to_end(version)
        return counts

    def _slice(self, model: _Model, part: str) -> str:
        if not part or part in model.slices:
            return part
        if len(model.slices) >= self._limits.slices:
            return OTHER
        model.slices.add(part)
        return part

    def _forget_one(self, sender: _Model) -> None:
        """Forget one id: the sender's oldest if it holds more than its share, else the oldest of
        the sender that holds most.
        """
        share = self._limits.ids / len(self._models)
        victim = sender if len(sender.ids) > share else max(self._models.values(), key=lambda m: len(m.ids))
        victim.ids.popitem(last=False)
        self._ids -= 1
