"""PURE: what each dashboard shows. A panel is a title, queries, a unit and a word for who reads it.

Replicas of the operator show the same of each model, hence ``max by``. ``$model_namespace`` and
``$name`` are the dashboards' variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "graph", "table", "states"]
D = "modelrollout_deployment"
OF = '{model_namespace=~"$model_namespace",name=~"$name"}'
BY = "max by (model_namespace, name)"
TRITON = 'namespace=~"$model_namespace",model=~"$name"'
# each side of a trial by its role: the model's version in Triton names its revision
ROLES = f"* on (version) group_left (role, revision) max by (version, role, revision) ({D}_revision{OF})"


@dataclass(frozen=True)
class Panel:
    """``queries``: legend -> PromQL; an empty legend shows the labels."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: Kind = "graph"
    width: int = 12  # of 24
    about: str = ""
    optional: bool = False  # of something that not every cluster has: it may have no data


@dataclass(frozen=True)
class Board:
    """``variables``: name -> the query that fills it."""

    uid: str
    title: str
    about: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    variables: dict[str, str] = field(default_factory=dict)


_NAMESPACE = {"model_namespace": f"label_values({D}_phase, model_namespace)"}
_MODEL = {
    **_NAMESPACE,
    "name": f'label_values({D}_phase{{model_namespace=~"$model_namespace"}}, name)',
}
_NS = '{model_namespace=~"$model_namespace"}'


def _rate(metric: str) -> str:
    """Of one of Triton's counters, a second, by version."""
    return f"sum by (version) (rate({metric}{{{TRITON}}}[2m]))"


def _per_request(metric: str) -> str:
    return f"{_rate(metric)} / {_rate('nv_inference_request_success')}"


def _ended(metric: str, by: str) -> str:
    return f"sum by ({by}) (increase({metric}{_NS}[1d]))"


def _passes(q: float) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate(modelrollout_reconcile_seconds_bucket[5m])))"


def _quantile(q: float, metric: str, by: str) -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (increase({metric}_bucket[1d])))"


FLEET = Board(
    "modelrollout-fleet",
    "Models: fleet",
    "All models under the operator: what needs a person, what is under way, how rollouts end.",
    (
        (
            "Now",
            (
                Panel("Models", {"": f"count({BY} ({D}_ready{_NS}))"}, kind="stat", width=4),
                Panel(
                    "Not ready", {"": f"count({BY} ({D}_ready{_NS}) == 0) or vector(0)"}, kind="stat", width=4
                ),
                Panel("Stalled", {"": f"count({BY} ({D}_stalled{_NS})) or vector(0)"}, kind="stat", width=4),
                Panel(
                    "Unavailable",
                    {"": f"count({BY} ({D}_available{_NS}) == 0) or vector(0)"},
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "On trial",
                    {"": f"count({BY} ({D}_weight_percent{_NS})) or vector(0)"},
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Wait for capacity",
                    {"": f"count({BY} ({D}_waiting{_NS})) or vector(0)"},
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "What needs a person",
                    {"": f"max by (model_namespace, name, reason) ({D}_stalled{_NS})"},
                    kind="table",
                    about="The reference of reasons says what to do.",
                    optional=True,
                ),
                Panel(
                    "On trial, percent of the requests",
                    {"{{model_namespace}}/{{name}}": f"{BY} ({D}_weight_percent{_NS})"},
                    unit="percent",
                ),
            ),
        ),
        (
            "Over time",
            (
                Panel(
                    "Models by phase",
                    {"{{phase}}": f"sum by (phase) (max by (model_namespace, name, phase) ({D}_phase{_NS}))"},
                ),
                Panel(
                    "Rollouts that ended, by outcome and day",
                    {"{{outcome}}": _ended("modelrollout_rollouts_ended_total", "outcome")},
                ),
                Panel(
                    "Verdicts of steps, by day",
                    {"{{verdict}}": _ended("modelrollout_step_verdicts_total", "verdict")},
                ),
                Panel(
                    "Median time by stage",
                    {"{{stage}}": _quantile(0.5, "modelrollout_stage_seconds", "stage")},
                    unit="s",
                ),
            ),
        ),
    ),
    _NAMESPACE,
)

MODEL = Board(
    "modelrollout-model",
    "Models: one model",
    "One model: state, versions, requests, failures, latency, labelled answers.",
    (
        (
            "State",
            (
                Panel("Phase", {"{{phase}}": f"max by (phase) ({D}_phase{OF})"}, kind="states"),
                Panel("Ready", {"": f"max({D}_ready{OF})"}, kind="stat", width=4),
                Panel("Available", {"": f"max({D}_available{OF})"}, kind="stat", width=4),
                Panel(
                    "Revisions",
                    {"": f"max by (role, revision, version) ({D}_revision{OF})"},
                    kind="table",
                    width=4,
                ),
                Panel(
                    "Requests to the version on trial", {"": f"max({D}_weight_percent{OF})"}, unit="percent"
                ),
                Panel(
                    "Pods of the version that serves",
                    {"ready": f"max({D}_ready_replicas{OF})", "asked for": f"max({D}_replicas{OF})"},
                ),
            ),
        ),
        (
            "Servers, by version",
            (
                Panel(
                    "Requests a second",
                    {"version {{version}}": _rate("nv_inference_request_success")},
                    unit="reqps",
                ),
                Panel(
                    "Failures a second",
                    {"version {{version}}": _rate("nv_inference_request_failure")},
                    unit="reqps",
                ),
                Panel(
                    "Mean time of a request",
                    {"version {{version}}": _per_request("nv_inference_request_duration_us")},
                    unit="µs",
                ),
                Panel(
                    "Right answers, of those with a label",
                    {
                        "version {{version}}": "sum by (version) (increase(modelrollout_feedback_total"
                        '{model_namespace=~"$model_namespace",name=~"$name",result="right"}[10m]))'
                        " / sum by (version) (increase(modelrollout_feedback_total"
                        '{model_namespace=~"$model_namespace",name=~"$name"}[10m]))'
                    },
                    unit="percentunit",
                    optional=True,
                ),
            ),
        ),
    ),
    _MODEL,
)

ROLLOUT = Board(
    "modelrollout-rollout",
    "Models: one rollout",
    "The version on trial beside stable, each with its role and revision.",
    (
        (
            "Where it is",
            (
                Panel(
                    "Stage", {"{{stage}}": f"max by (stage) ({D}_stage{OF})"}, kind="states", optional=True
                ),
                Panel("Step", {"{{step}}": f"max by (step) ({D}_step{OF})"}, kind="states", optional=True),
                Panel(
                    "Age of the step",
                    {"": f"time() - max({D}_step_started_seconds{OF})"},
                    unit="s",
                    kind="stat",
                    width=6,
                    optional=True,
                ),
                Panel(
                    "Share of the requests",
                    {"": f"max({D}_weight_percent{OF})"},
                    unit="percent",
                    kind="stat",
                    width=6,
                    optional=True,
                ),
            ),
        ),
        (
            "Side by side",
            (
                Panel(
                    "Requests a second",
                    {"{{role}} {{revision}}": f"{_rate('nv_inference_request_success')} {ROLES}"},
                    unit="reqps",
                ),
                Panel(
                    "Failures a second",
                    {"{{role}} {{revision}}": f"{_rate('nv_inference_request_failure')} {ROLES}"},
                    unit="reqps",
                ),
                Panel(
                    "Mean time of a request",
                    {
                        "{{role}} {{revision}}": (
                            f"({_per_request('nv_inference_request_duration_us')}) {ROLES}"
                        )
                    },
                    unit="µs",
                ),
                Panel(
                    "Mean time in the queue",
                    {"{{role}} {{revision}}": f"({_per_request('nv_inference_queue_duration_us')}) {ROLES}"},
                    unit="µs",
                ),
            ),
        ),
    ),
    _MODEL,
)

OPERATOR = Board(
    "modelrollout-operator",
    "Models: the operator",
    "The operator itself: who leads, how fast it decides, what fails.",
    (
        (
            "Operator",
            (
                Panel("Leaders", {"": "sum(modelrollout_leader)"}, kind="stat", width=4),
                Panel("Queue", {"{{instance}}": "modelrollout_queue_depth"}, width=10),
                Panel(
                    "Passes",
                    {
                        "p50": _passes(0.5),
                        "p99": _passes(0.99),
                    },
                    unit="s",
                    width=10,
                ),
                Panel(
                    "Passes a second", {"": "sum(rate(modelrollout_reconcile_seconds_count[5m]))"}, width=8
                ),
                Panel(
                    "Passes that failed",
                    {"{{kind}}": "sum by (kind) (rate(modelrollout_reconcile_errors_total[5m]))"},
                    width=8,
                    optional=True,
                ),
                Panel(
                    "Requests to the API server",
                    {"{{verb}} {{code}}": "sum by (verb, code) (rate(modelrollout_api_requests_total[5m]))"},
                    width=8,
                ),
                Panel(
                    "Memory",
                    {"{{instance}}": "process_resident_memory_bytes and on (instance) modelrollout_leader"},
                    unit="bytes",
                ),
                Panel(
                    "CPU",
                    {
                        "{{instance}}": "rate(process_cpu_seconds_total[5m])"
                        " and on (instance) modelrollout_leader"
                    },
                ),
            ),
        ),
    ),
)

_DCGM = 'exported_namespace=~"$model_namespace"'
GPUS = Board(
    "modelrollout-gpus",
    "Models: GPUs",
    "GPUs of the models, by NVIDIA's DCGM exporter. Never tried on a real GPU.",
    (
        (
            "GPUs",
            tuple(
                Panel(
                    title, {"{{exported_pod}} GPU {{gpu}}": f"{metric}{{{_DCGM}}}"}, unit=unit, optional=True
                )
                for title, metric, unit in (
                    ("Busy", "DCGM_FI_DEV_GPU_UTIL", "percent"),
                    ("Memory in use", "DCGM_FI_DEV_FB_USED", "decmbytes"),
                    ("Tensor cores busy", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "percentunit"),
                    ("Power", "DCGM_FI_DEV_POWER_USAGE", "watt"),
                )
            ),
        ),
    ),
    _NAMESPACE,
)

BOARDS = (FLEET, MODEL, ROLLOUT, OPERATOR, GPUS)
