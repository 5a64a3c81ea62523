"""PromQL for raw counters by process: the parts that the queries of all evidence sources share."""

from __future__ import annotations

from collections.abc import Sequence

from modelrollout.analysis.providers.prometheus.target import ScrapedTarget

READING = "reading"  # the label that tells the parts of one answer apart
# at the baseline a process still counts for this long after its last scrape
BASELINE_WINDOW = "10m"
_POD_BASE = 58


def counters(
    metric: str, labels: Sequence[str], selector: str, side: str, kinds: Sequence[str], baseline: bool
) -> str:
    """Counts by side, process and ``kinds``, with the times of the scrapes."""
    counts = counter_part("count", metric, labels, selector, (side, "instance", *kinds), baseline)
    return f"{counts} or {scrape_times(metric, selector, side)}"


def counter_part(
    reading: str, metric: str, labels: Sequence[str], selector: str, by: Sequence[str], baseline: bool
) -> str:
    """Counters by process, which is a scraped instance. ``labels``: those that the process itself
    writes on each counter.
    """

    def total(vector: str) -> str:
        # The inner maximum leaves one series where two jobs scrape the same instance, or its
        # requests would count twice.
        return f"sum by ({', '.join(by)}) (max by (instance, {', '.join(labels)}) ({vector}))"

    counts = total(f"{metric}{{{selector}}}")
    if baseline:
        process = ", ".join(by[:2])
        past = total(f"last_over_time({metric}{{{selector}}}[{BASELINE_WINDOW}])")
        counts = f"{counts} or ({past} unless on ({process}) {metric}{{{selector}}})"
    return f'label_replace({counts}, "{READING}", "{reading}", "", "")'


def scrape_times(metric: str, selector: str, side: str) -> str:
    """When each process was last scraped."""
    # timestamp() gives the time of the scrape only for a bare selector
    times = f"max by ({side}, instance) (timestamp({metric}{{{selector}}}))"
    return f'label_replace({times}, "{READING}", "scraped", "", "")'


def pods_of(target: ScrapedTarget, deployments: Sequence[str]) -> str:
    """Matchers of the pods of these Deployments, and of series to which the scrape gives no pod.

    A pod's name ends in the template's hash, a dash and five characters; Kubernetes cuts it at 58
    before those.
    """
    prefixes = any_of([f"{d}-"[:_POD_BASE] for d in deployments])
    namespace = f'{target.matchers.namespace}="{target.namespace}"'
    return f'{namespace},{target.matchers.pod}=~"(?:{prefixes})[a-z0-9]*-?[a-z0-9]{{5}}|"'


def join_matchers(*matchers: str) -> str:
    """One selector of those that are not empty."""
    return ",".join(m for m in matchers if m)


def any_of(values: Sequence[str]) -> str:
    """A regular expression in a PromQL string for exactly these values: names of Kubernetes
    objects, where only the dot is special.
    """
    return "|".join(v.replace(".", "\\\\.") for v in values)
