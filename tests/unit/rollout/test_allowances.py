"""What a spec takes that is not its own, and who says what there is to take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1.model import SecretKey
from modelrollout.api.v1alpha1.pod import ConfigMapKey, ConfigMapName
from modelrollout.api.v1alpha1.schema import LocalName
from modelrollout.config import OperatorConfig, PodRules, RoutesConfig, WorkloadRules
from modelrollout.rollout.policy.allowances import allowance_violation, filter_violation, secrets
from modelrollout.rollout.policy.rules import NO_RULES, Policy, combine
from modelrollout.testing import builders as b
from tests.unit.resources.objects import CONFIG
from tests.unit.rollout.test_policy import policy

SHUT = CONFIG.model_copy(update={"workloads": CONFIG.workloads.model_copy(update={"only_by_policy": True})})
OWN = CONFIG.stores[0].secret_name
MINE = {"secretRef": {"name": "mine"}}
SIGNED = {"keySecretRef": {"name": "signer", "key": "key.pem"}}
IMAGE = f"example.com/train@sha256:{'0' * 64}"
EVERYWHERE: dict[str, Any] = {
    "model": {"uri": "s3://models/digits/v1/model.onnx", "credentials": MINE, "signature": SIGNED},
    "optimization": {
        "steps": [
            {
                "prune": {
                    "sparsity": 0.5,
                    "training": {"data": {"uri": "s3://models/t.npz", "credentials": MINE}},
                }
            },
            {
                "distill": {
                    "student": {"uri": "s3://models/s.onnx", "sha256": "0" * 64, "credentials": MINE},
                    "training": {"data": {"uri": "s3://models/t.npz", "credentials": MINE}},
                }
            },
            {"int8": {"method": "Static", "calibration": {"uri": "s3://models/c.npz", "credentials": MINE}}},
        ],
        "gate": {
            "data": {"uri": "s3://models/h.npz", "credentials": MINE},
            "metrics": [{"name": "accuracy", "maxDrop": 0.01}],
        },
    },
    "serving": {
        "resources": {},
        "imagePullSecrets": [{"name": "registry"}],
        "pod": {
            "volumes": [{"name": "v", "secret": {"name": "files"}}],
            "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}}],
        },
        "tune": {"objective": "50ms", "data": {"uri": "s3://models/i.npz", "credentials": MINE}},
    },
    "rollout": {
        "analysis": {"golden": {"uri": "https://open.example.com/g.npz", "labels": "y", "credentials": MINE}}
    },
}
FIELDS = {
    "spec.model.credentials.secretRef.name",
    "spec.model.signature.keySecretRef.name",
    "spec.optimization.steps[0].prune.training.data.credentials.secretRef.name",
    "spec.optimization.steps[1].distill.student.credentials.secretRef.name",
    "spec.optimization.steps[1].distill.training.data.credentials.secretRef.name",
    "spec.optimization.steps[2].int8.calibration.credentials.secretRef.name",
    "spec.optimization.gate.data.credentials.secretRef.name",
    "spec.serving.imagePullSecrets[0].name",
    "spec.serving.pod.env[0].valueFrom.secretKeyRef.name",
    "spec.serving.pod.volumes[0].secret.name",
    "spec.serving.tune.data.credentials.secretRef.name",
    "spec.rollout.analysis.golden.credentials.secretRef.name",
}


def spec(**parts: Any) -> ModelDeploymentSpec:
    actual = b.spec(1).wire()
    return ModelDeploymentSpec.model_validate(actual | {k: actual.get(k, {}) | v for k, v in parts.items()})


def told(specified: ModelDeploymentSpec, *policies: Policy, shut: bool = False) -> str:
    violation = allowance_violation(combine(policies), specified, "ml", SHUT if shut else CONFIG)
    return f"{violation.reason}: {violation.message}" if violation else ""


def test_every_secret_that_a_spec_can_name_is_found() -> None:
    references = list(secrets(ModelDeploymentSpec.model_validate(EVERYWHERE)))
    assert {s.field for s in references} == FIELDS
    assert {s.field.rsplit(".", 1)[0] for s in references if s.uri is None} == {
        "spec.model.signature.keySecretRef",
        "spec.serving.imagePullSecrets[0]",
        "spec.serving.pod.env[0].valueFrom.secretKeyRef",
        "spec.serving.pod.volumes[0].secret",
    }


def test_the_fields_above_are_all_that_the_types_have() -> None:
    """A reference of another type would be found nowhere: whatever is called a Secret has one of
    the two, and whatever is called a ConfigMap the type of those, which hold nothing secret.
    """

    def parts(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in get_args(annotation):
            yield from parts(inner)

    places, odd, todo, known = set(), set(), [ModelDeploymentSpec], {ModelDeploymentSpec}
    while todo:
        owner = todo.pop()
        for name, field in owner.model_fields.items():
            kinds = list(parts(field.annotation))
            if {LocalName, SecretKey} & set(kinds):
                places.add((owner.__name__, name))
            elif "secret" in name or (
                "config_map" in name and not {ConfigMapKey, ConfigMapName} & set(kinds)
            ):
                odd.add((owner.__name__, name))
            fresh = [kind for kind in kinds if kind not in known]
            known.update(fresh)
            todo += fresh
    assert not odd
    assert places == {
        ("Credentials", "secret_ref"),
        ("Signature", "key_secret_ref"),
        ("Serving", "image_pull_secrets"),
        ("EnvSource", "secret_key_ref"),
        ("Volume", "secret"),
    }
    holding = {
        (kind.__name__, name)
        for kind in known
        for name, f in kind.model_fields.items()
        if "Credentials" in {p.__name__ for p in parts(f.annotation)}
    }
    assert holding == {(kind, "credentials") for kind in ("Model", "ModelFile", "Data", "Golden")}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_no_secret_is_named_that_no_policy_allows(field: str) -> None:
    spec = ModelDeploymentSpec.model_validate(EVERYWHERE)
    names = {s.name for s in secrets(spec) if s.field != field}
    (one,) = (s for s in secrets(spec) if s.field == field)
    renamed = ModelDeploymentSpec.model_validate(
        _renamed(EVERYWHERE, field.removeprefix("spec.").removesuffix(".name"), "theirs")
    )
    known = sorted(names | {one.name})
    allowing = policy(allowedSecrets=known, allowedPods={"secrets": known})
    assert told(spec, allowing) == ""
    assert told(renamed, allowing).startswith(
        f"SecretNotAllowed: {field}: theirs: RolloutPolicy p allows only "
    )


def _renamed(wire: Any, path: str, name: str) -> Any:
    head, _, rest = path.partition(".")
    key, _, index = head.rstrip("]").partition("[")
    inner = wire[key][int(index)] if index else wire[key]
    changed = _renamed(inner, rest, name) if rest else inner | {"name": name}
    return wire | {
        key: [changed if i == int(index) else x for i, x in enumerate(wire[key])] if index else changed
    }


class TestSecrets:
    def test_a_stores_own_is_the_platforms_choice_for_what_lies_there_only(self) -> None:
        assert OWN
        own = {"secretRef": {"name": OWN}}
        model = {"uri": "s3://models/digits/v1/model.onnx"}
        assert told(spec(model=model | {"credentials": own}), policy(allowedSecrets=["other"])) == ""
        assert told(spec(model=model | {"credentials": own}), shut=True) == ""
        elsewhere = spec(model={"uri": "https://open.example.com/m.onnx", "credentials": own})
        assert "SecretNotAllowed" in told(elsewhere, policy(allowedSecrets=["other"]))
        assert "SecretNotAllowed" in told(
            spec(serving={"imagePullSecrets": [{"name": OWN}]}), policy(allowedSecrets=["other"])
        )

    def test_without_a_policy_all_are_allowed_unless_the_configuration_says_otherwise(self) -> None:
        spec = ModelDeploymentSpec.model_validate(EVERYWHERE)
        assert told(spec) == ""
        assert told(spec, shut=True).startswith(
            "SecretNotAllowed: spec.model.credentials.secretRef.name: mine: no RolloutPolicy allows any"
        )
        assert (
            told(spec, policy(allowedSecrets=["*"], allowedPods={"env": ["*"], "secrets": ["*"]}), shut=True)
            == ""
        )
        jobs_alone = policy(allowedSecrets=["*"], allowedPods={"env": ["*"]})
        assert told(spec, jobs_alone, shut=True).startswith("SecretNotAllowed: spec.serving.pod.env[0].")

    def test_an_empty_list_leaves_the_stores_own(self) -> None:
        nothing = policy(allowedSecrets=[])
        model = {"uri": "s3://models/digits/v1/model.onnx"}
        assert told(spec(model=model | {"credentials": {"secretRef": {"name": OWN}}}), nothing) == ""
        assert "RolloutPolicy p allows only each store's own Secret" in told(
            spec(model=model | {"credentials": MINE}), nothing
        )
        assert "allows only none; " in told(
            spec(serving={"imagePullSecrets": [{"name": "registry"}]}), nothing
        )

    def test_each_policy_must_allow_it(self) -> None:
        desired = spec(model={"uri": "s3://models/digits/v1/model.onnx", "credentials": MINE})
        assert told(desired, policy("a", allowedSecrets=["mi*"]), policy("b", allowedSecrets=["mine"])) == ""
        message = told(
            desired, policy("a", allowedSecrets=["mi*"]), policy("b", allowedSecrets=["s3-*", "signer"])
        )
        assert "RolloutPolicy b allows only s3-*, signer, each store's own Secret" in message


NAMES_A_SECRET: list[dict[str, Any]] = [
    {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s3-data", "key": "k"}}}]},
    {"volumes": [{"name": "v", "secret": {"name": "s3-data"}}]},
]


class TestSecretsOfServers:
    """Code of the model reads them; what ``allowedSecrets`` lists is for Jobs."""

    @pytest.mark.parametrize("pod", NAMES_A_SECRET)
    def test_a_policy_that_lists_secrets_for_jobs_hands_none_to_a_server(self, pod: dict[str, Any]) -> None:
        wanted = spec(serving={"pod": pod})
        for allowed in (["s3-*"], ["*"], []):
            message = told(wanted, policy("old", allowedSecrets=allowed))
            assert message.startswith("SecretNotAllowed: spec.serving.pod.") and (
                ".name: s3-data: RolloutPolicy old allows only none to servers (allowedPods.secrets;"
                in message
            )

    @pytest.mark.parametrize("pod", NAMES_A_SECRET)
    def test_its_list_for_servers_does_and_each_policy_must(self, pod: dict[str, Any]) -> None:
        wanted, some = spec(serving={"pod": pod}), {"secrets": ["s3-*"], "env": ["*"]}
        assert told(wanted) == "" == told(wanted, policy(allowedPods={}))
        assert (
            told(wanted, policy(allowedPods=some)) == "" == told(wanted, policy(allowedPods=some), shut=True)
        )
        assert told(wanted, policy(allowedSecrets=[], allowedPods=some)) == ""
        for other in ({"allowedSecrets": ["s3-*"]}, {"allowedPods": {"secrets": ["hf"]}}):
            message = told(wanted, policy("a", allowedPods=some), policy("b", **other))
            assert "RolloutPolicy b allows only " in message
        assert "no RolloutPolicy allows any (allowedPods.secrets)" in told(
            wanted, policy(allowedPods={"env": ["*"]}), shut=True
        )

    def test_its_list_for_servers_is_none_for_jobs(self) -> None:
        model = {"uri": "s3://models/digits/v1/model.onnx", "credentials": MINE}
        servers = policy(allowedSecrets=["other"], allowedPods={"secrets": ["*"]})
        assert "SecretNotAllowed: spec.model.credentials" in told(spec(model=model), servers)
        assert "no RolloutPolicy allows any (allowedSecrets)" in told(
            spec(model=model), policy(allowedPods={"secrets": ["*"]}), shut=True
        )

    @pytest.mark.parametrize("pod", NAMES_A_SECRET)
    @pytest.mark.parametrize("name", ["s3-reader", "s3-writer", "s3-servers"])
    def test_a_stores_secret_is_for_no_server(self, pod: dict[str, Any], name: str) -> None:
        """Neither those to read with nor the one to write with, in any store."""
        config = CONFIG.model_copy(
            update={"artifacts": CONFIG.artifacts.model_copy(update={"read_secret_name": "s3-servers"})}
        )
        assert {s.secret_name for s in (*config.stores, config.artifacts)} == {"s3-reader", "s3-writer", None}
        wanted = spec(serving={"pod": json.loads(json.dumps(pod).replace("s3-data", name))})
        everything = policy(allowedSecrets=["*"], allowedPods={"secrets": ["*"], "env": ["*"]})
        for rules in (NO_RULES, combine([everything])):
            problem = allowance_violation(rules, wanted, "ml", config)
            assert problem is not None and problem.reason == "SecretNotAllowed"
            assert f".name: {name}: the operator's configuration names it for a store" in problem.message


class TestAccounts:
    @pytest.mark.parametrize(
        ("named", "lists", "refused"),
        [
            (None, [], ""),
            ("builder", [], ""),
            (
                None,
                [["model-server"]],
                (
                    "it is left out, so pods run as default: RolloutPolicy p0 allows only model-server; name"
                    " one of them"
                ),
            ),
            (None, [["default"]], ""),
            (None, [["*"]], ""),
            ("model-server", [["model-*"]], ""),
            (
                "model-server",
                [["model-*"], ["other"]],
                "spec.serving.serviceAccountName: model-server: RolloutPolicy p1 allows only other",
            ),
            (
                "builder",
                [["model-server"]],
                "spec.serving.serviceAccountName: builder: RolloutPolicy p0 allows only model-server",
            ),
        ],
    )
    def test_pods_run_as_whom_the_policies_allow(
        self, named: str | None, lists: list[list[str]], refused: str
    ) -> None:
        desired = spec(serving={"serviceAccountName": named} if named else {})
        message = told(
            desired, *(policy(f"p{i}", allowedServiceAccounts=names) for i, names in enumerate(lists))
        )
        assert (
            bool(message) is bool(refused)
            and refused in message
            and (not message or message.startswith("ServiceAccountNotAllowed: "))
        )

    def test_without_a_policy_the_configuration_may_leave_default_alone(self) -> None:
        assert told(spec(serving={"serviceAccountName": "builder"}), shut=True).startswith(
            "ServiceAccountNotAllowed: spec.serving.serviceAccountName"
        )
        assert (
            told(spec(serving={"serviceAccountName": "default"}), shut=True) == told(spec(), shut=True) == ""
        )
        assert (
            told(
                spec(serving={"serviceAccountName": "builder"}),
                policy(allowedServiceAccounts=["builder"]),
                shut=True,
            )
            == ""
        )


def test_without_a_policy_the_configuration_may_leave_the_platforms_images_alone() -> None:
    step = spec(optimization={"steps": [{"container": {"image": IMAGE}}]})
    server = spec(serving={"triton": {"image": "example.com/triton:1"}})
    for specified, field in (
        (step, "spec.optimization.steps[0].container.image"),
        (server, "spec.serving.triton.image"),
    ):
        assert told(specified) == ""
        assert told(specified, shut=True).startswith(f"ImageNotAllowed: {field}: example.com/")
        assert told(specified, policy(allowedSources={"images": ["example.com/"]}), shut=True) == ""
        assert told(specified, policy(allowedSources={"models": ["s3://models/"]}), shut=True).startswith(
            "ImageNotAllowed"
        )
    assert told(spec(), shut=True) == ""


ANTI_AFFINITY = "podAntiAffinity"
TERM = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}


class TestAffinity:
    @pytest.mark.parametrize(
        ("term", "refused"),
        [
            ({}, ""),
            ({"namespaces": ["ml"]}, ""),
            ({"namespaces": []}, ""),
            (
                {"namespaces": ["ml", "shop"]},
                (
                    "[0].namespaces: shop: required anti-affinity would keep pods of other namespaces off the"
                    " node"
                ),
            ),
            ({"namespaceSelector": {}}, "[0].namespaceSelector: required anti-affinity"),
            ({"namespaceSelector": {"matchLabels": {"a": "b"}}}, "[0].namespaceSelector"),
        ],
    )
    def test_no_spec_keeps_other_namespaces_off_a_node(self, term: dict[str, Any], refused: str) -> None:
        anti = {"requiredDuringSchedulingIgnoredDuringExecution": [TERM | term]}
        message = told(spec(serving={"affinity": {ANTI_AFFINITY: anti}}))
        assert (
            bool(message) is bool(refused)
            and refused in message
            and (not message or message.startswith("AffinityNotAllowed: spec.serving.affinity."))
        )

    def test_what_is_preferred_or_about_ones_own_place_displaces_no_other(self) -> None:
        wide = TERM | {"namespaceSelector": {}}
        preferred = {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": wide}]
        }
        beside = {"requiredDuringSchedulingIgnoredDuringExecution": [wide]}
        assert told(spec(serving={"affinity": {ANTI_AFFINITY: preferred, "podAffinity": beside}})) == ""

    @pytest.mark.parametrize(
        "odd",
        [
            {ANTI_AFFINITY: 1},
            {ANTI_AFFINITY: {"requiredDuringSchedulingIgnoredDuringExecution": ["x", 1, None]}},
        ],
    )
    def test_what_was_stored_before_there_was_a_schema_is_no_fault(self, odd: dict[str, Any]) -> None:
        assert told(spec(serving={"affinity": odd})) == ""


OPEN = CONFIG.model_copy(
    update={
        "routes": RoutesConfig.model_validate(
            {"extensionRefs": [{"group": "traefik.io", "kind": "Middleware"}]}
        )
    }
)


def filtering(filters: Any, **rollout: Any) -> ModelDeploymentSpec:
    traffic = {"gateway": {"name": "public"}, "http": {"hostnames": ["a.x"]}, "filters": filters}
    return b.spec(1, traffic=traffic, rollout=rollout or None)


def header(part: str, way: str, name: str) -> Any:
    return {part: {way: [name if way == "remove" else {"name": name, "value": "1"}]}}


@pytest.mark.parametrize(
    "name", ["x-modelrollout-key", "X-ModelRollout-Counted-Apart", "triton-grpc-protocol-x-modelrollout-key",
        "Host", "Content-Length", "transfer-encoding", "grpc-status"],
)  # fmt: skip
@pytest.mark.parametrize("part", ["requestHeaderModifier", "responseHeaderModifier"])
@pytest.mark.parametrize("way", ["set", "add", "remove"])
def test_headers_of_the_operator_and_of_the_protocol_are_no_ones(name: str, part: str, way: str) -> None:
    problem = filter_violation(NO_RULES, filtering(header(part, way, name)), OPEN)
    assert problem is not None and problem.reason == "FilterNotAllowed"
    assert problem.message.startswith(
        f"spec.traffic.filters.{part}.{way}[0]: {name}: it belongs to the operator"
    )


def test_headers_that_choose_a_version_stay_as_clients_send_them() -> None:
    filters = header("requestHeaderModifier", "set", "X-Beta")
    test = {"abTest": {"headers": [{"name": "x-beta", "value": "1"}]}}
    problem = filter_violation(NO_RULES, filtering(filters, **test), OPEN)
    assert problem is not None and "spec.rollout.abTest chooses the version by it" in problem.message
    assert filter_violation(NO_RULES, filtering(filters), OPEN) is None


def test_only_kinds_of_the_configuration_may_be_named() -> None:
    listed, other = (
        filtering({"extensionRefs": [{"group": group, "kind": "Middleware", "name": "login"}]})
        for group in ("traefik.io", "traefik.example")
    )
    assert filter_violation(NO_RULES, listed, OPEN) is None
    for spec, config in ((other, OPEN), (listed, CONFIG)):
        problem = filter_violation(NO_RULES, spec, config)
        assert problem is not None and problem.reason == "FilterNotAllowed"
        assert (
            "(routes.extensionRefs); leave it out, or have the platform team add the kind" in problem.message
        )


def test_a_policy_forbids_filters() -> None:
    rules = combine([policy("a", gates={"filters": "Allow"}), policy("b", gates={"filters": "Forbid"})])
    problem = filter_violation(rules, filtering(header("requestHeaderModifier", "set", "x")), OPEN)
    assert problem is not None and problem.reason == "FilterNotAllowed"
    assert problem.message == (
        "spec.traffic.filters: RolloutPolicy b (gates.filters) forbids filters; leave them out"
    )
    assert filter_violation(rules, b.spec(1), OPEN) is None


LISTED = CONFIG.model_copy(
    update={
        "workloads": WorkloadRules(
            pods=PodRules(
                labels=["cost-center", "example.com/*"], annotations=["*"], priority_classes=["serving"]
            )
        )
    }
)


def carrying(**pod: Any) -> ModelDeploymentSpec:
    return spec(serving={"pod": pod})


def of_pods(specified: ModelDeploymentSpec, config: OperatorConfig, *policies: Policy) -> str:
    problem = allowance_violation(combine(policies), specified, "ml", config)
    if problem is None:
        return ""
    assert problem.reason == "PodFieldNotAllowed"
    return problem.message


@pytest.mark.parametrize(
    ("pod", "refused"),
    [
        ({"labels": {"cost-center": "7", "example.com/team": "v"}}, ""),
        ({"labels": {"cost-centers": "7"}}, "labels: cost-centers"),
        ({"labels": {"app": "shop"}}, "labels: app"),
        ({"annotations": {"anything.example/at-all": "x"}}, ""),
        ({"priorityClassName": "serving"}, ""),
        ({"priorityClassName": "serving-2"}, "priorityClassName: serving-2"),
        ({"runtimeClassName": "nvidia", "schedulerName": "volcano"}, ""),
    ],
)
def test_what_concerns_others_is_listed_by_the_platform_team(pod: dict[str, Any], refused: str) -> None:
    message = of_pods(carrying(**pod), LISTED)
    assert bool(message) is bool(refused) and message.startswith(
        f"spec.serving.pod.{refused}: the operator's configuration does not list it" if refused else ""
    )
    unlisted = pod.keys() & {"labels", "annotations", "priorityClassName"}
    assert ("(workloads.pods." in of_pods(carrying(**pod), CONFIG)) is bool(unlisted)


@pytest.mark.parametrize(
    ("pod", "field"),
    [
        ({"labels": {"cost-center": "7"}}, "labels"),
        ({"annotations": {"example.com/a": "7"}}, "annotations"),
        ({"priorityClassName": "serving"}, "priorityClasses"),
        ({"runtimeClassName": "nvidia"}, "runtimeClasses"),
        ({"schedulerName": "volcano"}, "schedulers"),
        ({"env": [{"name": "HF_TOKEN", "value": "x"}]}, "env"),
        ({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}, "volumeClaims"),
    ],
)
def test_policies_narrow_what_pods_may_carry(pod: dict[str, Any], field: str) -> None:
    (name,) = pod
    told = of_pods(carrying(**pod), LISTED, policy("p0", allowedPods={field: ["*"]}))
    assert told == ""
    for allowed in ([], ["other"]):
        told = of_pods(
            carrying(**pod),
            LISTED,
            policy("p0", allowedPods={field: ["*"]}),
            policy("p1", allowedPods={field: allowed}),
        )
        assert told.startswith(f"spec.serving.pod.{name}: ") and (
            f"RolloutPolicy p1 (allowedPods.{field}) allows only {', '.join(allowed) or 'none'}; " in told
        )
    assert of_pods(carrying(**pod), LISTED, policy("p0", allowedPods={})) == "", "left out: as configured"


def test_without_a_policy_the_configuration_may_leave_runtime_scheduler_and_environment_alone() -> None:
    shut = LISTED.model_copy(
        update={"workloads": LISTED.workloads.model_copy(update={"only_by_policy": True})}
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"runtimeClassName": "nvidia"}, "runtimeClasses"),
        ({"schedulerName": "x"}, "schedulers"),
        ({"env": [{"name": "HF_TOKEN", "value": "x"}]}, "env"),
        ({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}, "volumeClaims"),
    ]
    for pod, field in cases:
        assert f"no RolloutPolicy allows any (allowedPods.{field})" in of_pods(carrying(**pod), shut)
        assert of_pods(carrying(**pod), shut, policy(allowedPods={field: ["*"]})) == ""
    usual = {
        "schedulerName": "default-scheduler",
        "labels": {"cost-center": "1"},
        "priorityClassName": "serving",
    }
    assert of_pods(carrying(**usual), shut) == "", "what the configuration lists needs no policy"
    nothing = policy(allowedPods={"schedulers": []})
    assert of_pods(carrying(schedulerName="default-scheduler"), CONFIG, nothing) == ""


def test_the_claim_of_engines_is_one_of_those_that_policies_allow() -> None:
    """Its folder is written, so it is no less than a claim that is read."""
    cache = {"persistentVolumeClaim": {"claimName": "engines"}}
    accelerated = spec(serving={"accelerator": {"tensorRT": {"cache": cache}}})
    assert of_pods(accelerated, LISTED, policy("p0", allowedPods={"volumeClaims": ["eng*"]})) == ""
    told = of_pods(accelerated, LISTED, policy("p0", allowedPods={"volumeClaims": ["data"]}))
    assert told.startswith("spec.serving.accelerator.tensorRT.cache: engines: RolloutPolicy p0 ")
    assert (
        of_pods(spec(serving={"accelerator": {"tensorRT": {}}}), LISTED, policy("p0", allowedPods={})) == ""
    )
