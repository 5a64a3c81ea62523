"""The chart: its values reach the operator's configuration, its pods are hardened, its rights are
few.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic.alias_generators import to_camel

from modelrollout.cli import main
from modelrollout.config import (
    ArtifactStoreConfig,
    FeedbackMetrics,
    GatewayQueries,
    GpuConfig,
    NetworkPoliciesConfig,
    OperatorConfig,
    PrometheusConfig,
    StoreConfig,
    load_config,
)
from modelrollout.contract.tasks import CleanTask
from modelrollout.controller.shards import LEASE_NAME
from modelrollout.feedback.settings import SETTINGS_ENV, FeedbackLimits, FeedbackSettings
from modelrollout.jobs.runner import parse_task
from tests.integration.helm import CHART, TEMPLATE, helm

ROOT = Path(__file__).parents[2]


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def schema() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.schema.json").read_text())
    return found


def template(*changes: str, values: str | None = "ci/default-values", ok: bool = True) -> str:
    """A release ``mro`` in namespace ``modelrollout`` with the values of that file and ``--set`` of
    each change; unless ``ok``, why Helm refuses it.
    """
    file = ["-f", str(CHART / f"{values}.yaml")] if values else []
    sets = [argument for change in changes for argument in ("--set", change)]
    return helm(*TEMPLATE, *file, *sets, ok=ok)


def objects(*changes: str, values: str = "ci/default-values") -> list[dict[str, Any]]:
    """The objects of ``template``."""
    return [o for o in yaml.safe_load_all(template(*changes, values=values)) if o]


@cache
def rendered(which: str) -> tuple[dict[str, Any], ...]:
    """The objects with the values ``default`` or ``full`` of the chart's folder ``ci``."""
    return tuple(objects(values=f"ci/{which}-values"))


def pick(
    which: str, kind: str, name: str | None = None, namespace: str | None = None
) -> list[dict[str, Any]]:
    return [
        o
        for o in rendered(which)
        if o["kind"] == kind
        and name in (None, o["metadata"]["name"])
        and namespace in (None, o["metadata"].get("namespace"))
    ]


FULLNAME = "mro-model-rollout-operator"


def configuration(made: Sequence[dict[str, Any]]) -> str:
    """The operator's, of these objects of the chart; other ConfigMaps hold dashboards."""
    (found,) = [o for o in made if o["kind"] == "ConfigMap" and o["metadata"]["name"] == FULLNAME]
    text: str = found["data"]["config.yaml"]
    return text


class TestWithoutHelm:
    def test_every_value_is_in_the_schema_and_every_part_of_the_schema_has_a_default(self) -> None:
        def compare(value: dict[str, Any], node: dict[str, Any], path: str) -> None:
            if "properties" not in node:
                return
            known = set(node["properties"]) - {"global"}
            assert set(value) == known, f"{path}: {set(value) ^ known}"
            for key, child in value.items():
                if isinstance(child, dict):
                    compare(child, node["properties"][key], f"{path}.{key}")

        compare(values(), schema(), "values")

    def test_the_schema_takes_no_unknown_value(self) -> None:
        def walk(node: dict[str, Any], path: str) -> None:
            if "properties" in node:
                assert node.get("additionalProperties") is False, path
                for key, child in node["properties"].items():
                    walk(child, f"{path}.{key}")
            if isinstance(node.get("items"), dict):
                walk(node["items"], f"{path}[]")

        walk(schema(), "values")

    def test_the_readme_names_every_value(self) -> None:
        readme = (CHART / "README.md").read_text()
        for key in values():
            assert re.search(rf"`{key}[.`]", readme), key

    def test_stores_and_providers_have_the_fields_of_the_configuration(self) -> None:
        properties = schema()["properties"]
        store = {f.alias for f in StoreConfig.model_fields.values()}
        assert set(properties["stores"]["items"]["properties"]) == store
        assert (
            set(properties["artifacts"]["properties"])
            == {f.alias for f in ArtifactStoreConfig.model_fields.values()}
            > store
        )
        provider = {f.alias for f in PrometheusConfig.model_fields.values()}
        files = {"tokenFile", "usernameFile", "passwordFile", "headerFiles", "caFile"}
        mounted = {"tokenSecret", "basicAuthSecret", "headerSecrets", "caSecret", "caConfigMap"}
        assert set(properties["prometheus"]["items"]["properties"]) - mounted == provider - files

    def test_numbers_are_the_defaults_of_the_configuration(self) -> None:
        fields = OperatorConfig.model_fields
        v = values()
        for key, field in (
            ("workers", "workers"),
            ("resyncSeconds", "resync_seconds"),
            ("jobTtlSeconds", "job_ttl_seconds"),
            ("queries", "queries"),
        ):
            assert v[key] == fields[field].default
        drain, gateway = (
            fields["drain"].get_default(call_default_factory=True),
            fields["gateway_metrics"].get_default(call_default_factory=True),
        )
        capacity = fields["capacity"].get_default(call_default_factory=True)
        assert v["capacity"] == {**capacity.model_dump(by_alias=True), "lookAtNodes": True}
        assert v["drain"] == drain.model_dump(by_alias=True)
        queries = [f.alias or name for name, f in GatewayQueries.model_fields.items()]
        assert v["gatewayMetrics"] == {
            **gateway.model_dump(by_alias=True),
            "provider": "",
            "custom": dict.fromkeys(queries, ""),
        }
        assert (
            v["feedback"]["labelsPerRow"]
            == fields["feedback_metrics"].get_default(call_default_factory=True).labels_per_row
        )
        assert v["scrape"] == fields["scrape"].get_default(call_default_factory=True).model_dump(
            by_alias=True
        )

    def test_the_table_of_gpus_is_the_operators_own(self) -> None:
        own = OperatorConfig.model_fields["gpus"].get_default(call_default_factory=True)
        rows = {name: GpuConfig.model_validate(row) for name, row in values()["gpus"].items()}
        assert rows == own and list(rows) == list(own)

    def test_the_crds_are_the_committed_ones(self) -> None:
        committed = {p.name: p.read_text() for p in (ROOT / "crds").glob("*.yaml")}
        assert committed
        assert {p.name: p.read_text() for p in (CHART / "files" / "crds").glob("*.yaml")} == committed
        assert not (CHART / "crds").exists(), "helm never upgrades what is there"

    def test_the_clean_up_is_a_task_that_the_job_reads(self) -> None:
        (cron,) = pick("full", "CronJob")
        pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (first,), (second,) = pod["initContainers"], pod["containers"]
        task = parse_task(second["env"][0]["value"])
        assert isinstance(task, CleanTask)
        assert (task.artifacts.uri, task.artifacts.endpoint, task.artifacts.credentials) == (
            "s3://model-artifacts/",
            "https://s3.example.com",
            "artifacts",
        )
        assert (
            task.older_than_seconds == 14 * 86400
            and task.namespaces == ("models", "models-staging")
            and not task.dry_run
        )
        assert f"--output={task.references}" in first["args"] and {
            "--namespace=models",
            "--namespace=models-staging",
        } <= set(first["args"])
        assert not pick("default", "CronJob")

    def test_the_clean_up_keeps_the_key_to_the_store_and_the_token_apart(self) -> None:
        (cron,) = pick("full", "CronJob")
        pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        mounts = {
            c["name"]: {m["name"] for m in c["volumeMounts"]}
            for c in (*pod["initContainers"], *pod["containers"])
        }
        assert mounts == {
            "references": {"references", "token"},
            "clean": {"references", "tmp", "credentials"},
        }
        roles = [o for o in pick("full", "Role") if o["metadata"]["name"].endswith("-cleanup")]
        assert {o["metadata"]["namespace"] for o in roles} == {"models", "models-staging"}
        assert {verb for o in roles for rule in o["rules"] for verb in rule["verbs"]} == {"list"}

    def test_what_cannot_be_listed_is_not_cleaned_up(self) -> None:
        change = "artifacts.uri=https://files.example.com/artifacts/"
        assert "artifactCleanup.enabled" in template(change, values="ci/full-values", ok=False)

    @pytest.mark.parametrize("uri", ["gs://artifacts/", "az://artifacts/", "abfs://artifacts/"])
    def test_what_can_be_listed_is_cleaned_up(self, uri: str) -> None:
        assert "artifacts.json" in template(f"artifacts.uri={uri}", values="ci/full-values")

    def test_a_row_of_gpus_is_added_and_another_removed(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(configuration(rendered("full")))
        table = load_config(path).gpu_table
        assert (table.weight("example.com/vgpu"), table.weight("rdma/hca")) == (Fraction(1, 10), 0)
        assert table.tolerated({"example.com/vgpu": 1, "nvidia.com/mig-1g.5gb": 7}) == [
            "example.com/vgpu",
            "nvidia.com/gpu",
        ]
        assert table.row("google.com/tpu") is None
        assert table.share({"nvidia.com/mig-1g.5gb": 7}) == 1

    def test_a_row_may_be_removed_that_the_chart_has_not(self, tmp_path: Path) -> None:
        """It had it once, and whoever removed it then upgrades the chart."""
        path = tmp_path / "config.yaml"
        path.write_text(configuration(objects(r"gpus.example\.com/npu=null")))
        assert load_config(path).gpus == OperatorConfig.model_fields["gpus"].get_default(
            call_default_factory=True
        )

    @pytest.mark.parametrize("name", ["gpu", "nvidia.com/g*u", "*/gpu"])
    def test_a_row_that_the_operator_would_refuse_is_refused(self, name: str) -> None:
        escaped = name.replace(".", r"\.")
        why = template(f"gpus.{escaped}.weight=1", ok=False)
        assert f"'{name}' does not match pattern" in why

    @pytest.mark.parametrize("weight", ["-1", "a", "1/0", "true", "10000"])
    def test_a_weight_that_is_no_number_is_refused(self, weight: str) -> None:
        why = template(f"gpus.rdma/hca.weight={weight}", ok=False)
        assert "gpus" in why and "weight" in why

    def test_the_version_is_that_of_the_package(self) -> None:
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
        assert version is not None
        assert (chart["version"], chart["appVersion"]) == (version[1], version[1])

    def test_the_lease_is_the_one_that_the_operator_takes(self) -> None:
        helpers = (CHART / "templates" / "_helpers.tpl").read_text()
        found = re.search(r'define "modelrollout.lease" -}}(.+?){{- end', helpers)
        assert found is not None
        assert found[1] == LEASE_NAME

    def test_no_right_is_a_wildcard_and_none_is_to_secrets(self) -> None:
        for path in (CHART / "templates").glob("*"):
            text = path.read_text()
            assert "'*'" not in text, path
            assert '"*"' not in text, path
            assert "secrets" not in re.findall(r"resources: \[(.*)\]", text), path

    def test_the_operator_may_exactly_this(self) -> None:
        helpers = (CHART / "templates" / "_helpers.tpl").read_text()
        block = re.search(r'define "modelrollout.rules" -}}\n(.+?){{- end', helpers, re.S)
        assert block is not None
        granted = {
            f"{r['apiGroups'][0]}/{resource}": set(r["verbs"])
            for r in reversed(yaml.safe_load(block[1]))  # one rule for each resource
            for resource in r["resources"]
        }
        children = {"get", "list", "watch", "create", "patch", "delete"}
        assert granted == {
            "modelrollout.dev/modeldeployments": {"get", "list", "watch"},
            "modelrollout.dev/modeldeployments/status": {"update"},
            "modelrollout.dev/modelrevisions": children,
            "modelrollout.dev/modelrevisions/status": {"update"},
            "batch/jobs": children,
            "apps/deployments": children,
            "/services": children,
            "policy/poddisruptionbudgets": children,
            "gateway.networking.k8s.io/httproutes": children,
            "gateway.networking.k8s.io/grpcroutes": children,
            "gateway.networking.k8s.io/gateways": {"get", "list", "watch"},
            "/pods": {"list", "watch", "delete"},
            "kueue.x-k8s.io/workloads": {"list"},
            "/events": {"create", "patch", "list"},
        }


class TestRendered:
    @pytest.mark.parametrize("which", ["default", "full"])
    def test_lints(self, which: str) -> None:
        helm("lint", "--strict", str(CHART), "-f", str(CHART / "ci" / f"{which}-values.yaml"))

    @pytest.mark.parametrize("which", ["default", "full"])
    def test_the_operator_reads_its_configuration(self, which: str, tmp_path: Path) -> None:
        (found,) = pick(which, "ConfigMap", FULLNAME)
        path = tmp_path / "config.yaml"
        path.write_text(found["data"]["config.yaml"])
        config = load_config(path)
        assert config.artifacts.uri == "s3://model-artifacts/"
        label = "kubernetes_namespace" if which == "full" else "namespace"
        assert config.feedback_metrics == FeedbackMetrics(
            selector=f'{label}="modelrollout"', namespaces=["modelrollout"]
        )
        assert config.scrape.namespace_label == label
        assert config.shards == (4 if which == "full" else 1)
        if which == "full":
            assert config.namespaces == ["models", "models-staging"]
            assert config.images.optimizer == "registry.example.com/model-rollout-optimizer:1.2"
            assert (config.artifacts.secret_name, config.artifacts.read_secret_name) == (
                "s3-writer",
                "s3-artifact-reader",
            )
            assert config.stores[1].allow_http is True
            assert config.stores[1].leads_to == (
                "http://files.example.com/",
                "https://cdn.example.com/models/",
            )
            assert config.gateway_metrics.provider == "gateway" and config.gateway_metrics.namespaces == [
                "gateways"
            ]
            assert (
                config.gateway_metrics.selector == 'kubernetes_namespace="gateways",container=~"traefik|edge"'
            )
            assert [bool(p.token_file) for p in config.prometheus] == [True, False, False]

    def test_credentials_are_files_where_the_configuration_looks_for_them(self) -> None:
        config = yaml.safe_load(pick("full", "ConfigMap", FULLNAME)[0]["data"]["config.yaml"])
        pod = pick("full", "Deployment", FULLNAME)[0]["spec"]["template"]["spec"]
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        files = {
            f"{mounts[volume['name']]}/{item['path']}"
            for volume in pod["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            for item in (source.get("secret") or source["configMap"])["items"]
        }
        wanted = {
            p[k]
            for p in config["prometheus"]
            for k in ("tokenFile", "usernameFile", "passwordFile", "caFile")
            if k in p
        } | {file for p in config["prometheus"] for file in p.get("headerFiles", {}).values()}
        assert files == wanted
        assert len(wanted) == 7

    @pytest.mark.parametrize("which", ["default", "full"])
    def test_pods_are_hardened(self, which: str) -> None:
        deployments = pick(which, "Deployment")
        assert len(deployments) == 2
        for found in deployments:
            pod = found["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == 65532
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in pod["containers"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["readOnlyRootFilesystem"] is True
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["requests"]
                assert container["resources"]["limits"]["memory"]
        assert all(a["automountServiceAccountToken"] is False for a in pick(which, "ServiceAccount"))

    def test_arguments_are_those_of_the_command_line(self) -> None:
        group = typer.main.get_command(main.app)
        for found in pick("default", "Deployment"):
            container = found["spec"]["template"]["spec"]["containers"][0]
            assert container["command"] == ["modelrollout"]
            command, *arguments = container["args"]
            options = {o for p in group.commands[command].params for o in p.opts}  # type: ignore[attr-defined]
            assert {a for a in arguments if a.startswith("--")} <= options

    def test_a_changed_configuration_restarts_the_pods(self) -> None:
        sums = {
            which: pick(which, "Deployment", FULLNAME)[0]["spec"]["template"]["metadata"]["annotations"][
                "checksum/config"
            ]
            for which in ("default", "full")
        }
        assert sums["default"] != sums["full"]

    @pytest.mark.parametrize("which", ["default", "full"])
    def test_selectors_match_their_own_pods_only(self, which: str) -> None:
        pods = {
            d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"]
            for d in pick(which, "Deployment")
        }
        for found in pick(which, "Deployment"):
            selector = found["spec"]["selector"]["matchLabels"]
            assert [n for n, labels in pods.items() if selector.items() <= labels.items()] == [
                found["metadata"]["name"]
            ]
        (service,) = pick(which, "Service")
        assert [n for n, labels in pods.items() if service["spec"]["selector"].items() <= labels.items()] == [
            f"{FULLNAME}-feedback"
        ]
        (budget,) = pick(which, "PodDisruptionBudget")
        assert [
            n
            for n, labels in pods.items()
            if budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ] == [FULLNAME]

    def test_all_namespaces_need_a_cluster_role_and_named_ones_none(self) -> None:
        assert pick("default", "ClusterRole", FULLNAME)
        assert [r["metadata"]["namespace"] for r in pick("default", "Role")] == ["modelrollout"]
        assert not pick("full", "ClusterRole", FULLNAME)
        assert not pick("full", "ClusterRoleBinding", FULLNAME)
        # RolloutPolicies, nodes and GatewayClasses are cluster-scoped
        own = {"policies", "capacity", "gateways"}
        for which in ("default", "full"):
            assert {
                r["metadata"]["name"]
                for r in pick(which, "ClusterRole")
                if r["metadata"]["name"].startswith(FULLNAME + "-")
            } == {f"{FULLNAME}-{part}" for part in {*own, "feedback"}}
        (reader,) = pick("full", "ClusterRole", f"{FULLNAME}-gateways")
        assert all(rule["apiGroups"] == ["gateway.networking.k8s.io"] for rule in reader["rules"])
        roles = {(r["metadata"]["namespace"], r["metadata"]["name"]) for r in pick("full", "Role")}
        assert roles == {
            ("models", FULLNAME),
            ("models-staging", FULLNAME),
            ("models", f"{FULLNAME}-cleanup"),
            ("models-staging", f"{FULLNAME}-cleanup"),
            ("modelrollout", f"{FULLNAME}-lease"),
        }
        bound = {(b["metadata"]["namespace"], b["roleRef"]["name"]) for b in pick("full", "RoleBinding")}
        assert bound == roles

    def test_gateways_are_only_read_and_those_of_other_namespaces_by_name(self) -> None:
        """Named namespaces: of all others one Gateway at a time, whose name is in a spec."""
        for case in ("default", "full"):
            (role,) = pick(case, "ClusterRole", f"{FULLNAME}-gateways")
            assert [(r["resources"], r["verbs"]) for r in role["rules"]] == [
                (["gatewayclasses"], ["get", "list", "watch"]),
                (["gateways"], ["get"]),
            ]

    def test_traefik_services_are_written_only_when_asked_for(self) -> None:
        (without,) = pick("default", "ClusterRole", FULLNAME)
        roles = [r for r in pick("full", "Role", FULLNAME) if r["metadata"]["namespace"].startswith("models")]
        assert not [r for r in without["rules"] if "traefik.io" in r["apiGroups"]]
        assert len(roles) == 2 and all(
            ["traefikservices"] in [r["resources"] for r in role["rules"]] for role in roles
        )

    def test_policies_of_envoy_gateway_are_written_only_when_asked_for(self) -> None:
        (without,) = pick("default", "ClusterRole", FULLNAME)
        roles = [r for r in pick("full", "Role", FULLNAME) if r["metadata"]["namespace"].startswith("models")]
        assert not [r for r in without["rules"] if "gateway.envoyproxy.io" in r["apiGroups"]]
        assert len(roles) == 2 and all(
            ["backendtrafficpolicies"] in [r["resources"] for r in role["rules"]] for role in roles
        )

    def test_routes_have_filters_of_the_kinds_in_the_values_only(self) -> None:
        listed = ("routes.extensionRefs[0].group=traefik.io", "routes.extensionRefs[0].kind=Middleware")
        for changes in ((), listed):
            made = objects(*changes)
            (policy,) = (
                o
                for o in made
                if o["kind"] == "ValidatingAdmissionPolicy" and o["metadata"]["name"].endswith("-traffic")
            )
            expressions = " ".join(v["expression"] for v in policy["spec"]["validations"])
            assert "'ResponseHeaderModifier'" in expressions
            assert ("'traefik.io/Middleware'" in expressions) == bool(changes)

    def test_where_the_platform_gives_out_users_no_pod_names_one(self) -> None:
        for users, named in (("Fixed", True), ("Platform", False)):
            made = objects(f"workloads.users={users}")
            pods = [o["spec"]["template"]["spec"] for o in made if o["kind"] == "Deployment"]
            assert pods
            for pod in pods:
                context = pod["securityContext"]
                assert context["runAsNonRoot"] is True
                assert ({"runAsUser", "runAsGroup", "fsGroup"} <= set(context)) is named
                assert bool({"runAsUser", "runAsGroup", "fsGroup"} & set(context)) is named

    def test_pods_carry_the_labels_and_priorities_in_the_values_only(self) -> None:
        listed = (
            "workloads.pods.labels={cost-center,example.com/*}",
            "workloads.pods.priorityClasses={serving}",
        )
        for changes in ((), listed):
            made = objects(*changes)
            (policy,) = (
                o
                for o in made
                if o["kind"] == "ValidatingAdmissionPolicy" and o["metadata"]["name"].endswith("-pods")
            )
            expressions = " ".join(v["expression"] for v in policy["spec"]["validations"])
            for part in (
                " || k == 'cost-center' || k.startsWith('example.com/'))",
                " || variables.pod.priorityClassName == 'serving')",
            ):
                assert (part in expressions) == bool(changes)

    def test_leases_are_written_in_its_own_namespace_only(self) -> None:
        (role,) = pick("default", "Role")
        assert role["metadata"]["namespace"] == "modelrollout"
        assert [(r["resources"], r["verbs"]) for r in role["rules"]] == [
            (["leases"], ["get", "list", "create", "update", "delete"])
        ]

    def test_cluster_wide_it_reads_policies_and_counts_gpus(self) -> None:
        def rights(part: str) -> dict[tuple[str, ...], set[str]]:
            (role,) = pick("default", "ClusterRole", f"{FULLNAME}-{part}")
            return {tuple(r["resources"]): set(r["verbs"]) for r in role["rules"]}

        policies = {
            ("rolloutpolicies",): {"get", "list", "watch"},
            ("rolloutpolicies/status",): {"update"},
            ("namespaces",): {"get"},
        }
        assert rights("policies") == policies
        (bound,) = pick("full", "ClusterRole", f"{FULLNAME}-policies")
        assert bound["rules"][-1]["resourceNames"] == ["models", "models-staging"], (
            "no others than those that it watches"
        )
        assert rights("capacity") == {("nodes", "pods"): {"list"}}

    def test_without_the_look_at_nodes_there_is_no_right_to_it(self) -> None:
        made = objects("capacity.lookAtNodes=false")
        assert "nodes" not in {
            r for o in made if o["kind"] == "ClusterRole" for rule in o["rules"] for r in rule["resources"]
        }
        config = configuration(made)
        assert "lookAtNodes: false" in config

    @pytest.mark.parametrize("which", ["default", "full"])
    def test_whatever_it_may_write_an_admission_policy_looks_at(self, which: str) -> None:
        """Its own kinds' status aside; the policies are tried in
        tests/e2e/test_operator_rights.py.
        """
        mine = [
            r
            for kind in ("Role", "ClusterRole")
            for r in pick(which, kind)
            if r["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
        ]
        written = {
            (group, resource)
            for role in mine
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            if {"create", "update", "patch", "delete"} & set(rule["verbs"])
            and not resource.endswith("/status")
        }
        policies = pick(which, "ValidatingAdmissionPolicy")
        looked_at = {
            (group, resource)
            for policy in policies
            for rule in policy["spec"]["matchConstraints"]["resourceRules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        assert written and written <= looked_at
        who = f"request.userInfo.username == 'system:serviceaccount:modelrollout:{FULLNAME}'"
        assert all(
            p["spec"]["failurePolicy"] == "Fail" and p["spec"]["matchConditions"][0]["expression"] == who
            for p in policies
        )
        bound = {
            b["spec"]["policyName"]: b["spec"]["validationActions"]
            for b in pick(which, "ValidatingAdmissionPolicyBinding")
        }
        assert bound == {p["metadata"]["name"]: ["Deny"] for p in policies}

    def test_models_do_not_run_where_the_operator_does(self) -> None:
        change = "namespaces={models,modelrollout}"
        assert "namespaces: modelrollout is the release's own" in template(change, ok=False)
        template(change, "admissionPolicy.enabled=false")

    @pytest.mark.parametrize("cluster_wide", [False, True])
    def test_the_values_for_production_are_for_named_namespaces_with_all_doors_shut(
        self, cluster_wide: bool
    ) -> None:
        given = yaml.safe_load((CHART / "values-production.yaml").read_text())
        assert (
            given["namespaces"] and given["hostnames"]["onlyByPolicy"] and given["admissionPolicy"]["enabled"]
        )
        template(*["namespaces=null"] * cluster_wide, values="values-production")

    def test_feedback_may_only_ask_who_and_whether(self) -> None:
        (role,) = pick("default", "ClusterRole", f"{FULLNAME}-feedback")
        assert {(tuple(r["resources"]), tuple(r["verbs"])) for r in role["rules"]} == {
            (("tokenreviews",), ("create",)),
            (("subjectaccessreviews",), ("create",)),
        }
        assert [
            s["name"] for s in pick("default", "ClusterRoleBinding", f"{FULLNAME}-feedback")[0]["subjects"]
        ] == [f"{FULLNAME}-feedback"]

    def test_only_operating_and_feedback_are_not_aggregated(self) -> None:
        roles = {
            r["metadata"]["name"]: r
            for r in pick("default", "ClusterRole")
            if r["metadata"]["name"].startswith("modelrollout-")
        }
        aggregated = {
            n for n, r in roles.items() if any("aggregate-to" in label for label in r["metadata"]["labels"])
        }
        assert set(roles) - aggregated == {"modelrollout-operate", "modelrollout-feedback"}
        patches = {
            n
            for n, r in roles.items()
            for rule in r["rules"]
            if "modelrevisions" in rule["resources"] and "patch" in rule["verbs"]
        }
        assert patches == {"modelrollout-operate"}

    def test_the_definitions_come_along_untouched(self) -> None:
        committed = [yaml.safe_load(p.read_text()) for p in sorted((ROOT / "crds").glob("*.yaml"))]
        assert (
            sorted(pick("default", "CustomResourceDefinition"), key=lambda o: o["metadata"]["name"])
            == committed
        )

    def test_a_digest_wins_over_the_tag(self) -> None:
        image = pick("full", "Deployment", FULLNAME)[0]["spec"]["template"]["spec"]["containers"][0]["image"]
        assert re.fullmatch(r"registry\.example\.com/model-rollout-operator@sha256:0{64}", image)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("artifacts.uri=s3://a/", "stores: name at least one place"),
            ("stores[0].name=m,stores[0].uri=s3://m/", "artifacts.uri: say where"),
            ("stores[0].name=m,stores[0].uri=s3://m/,artifacts.uri=hf://org/", "does not match pattern"),
            ("store=1", "additional properties 'store' not allowed"),
            ("stores[0].name=m,stores[0].uri=ftp://m/", "does not match pattern"),
            ("stores[0].name=m,stores[0].uri=https://me:secret@m/", "does not match pattern"),
            ("stores[0].name=m,stores[0].uri=https://m/?sig=secret", "does not match pattern"),
            (
                "stores[0].name=m,stores[0].uri=https://m/,stores[0].redirectsTo[0]=https://cdn",
                "does not match pattern",
            ),
            ("workers=0", "minimum"),
            ("image.digest=latest", "does not match pattern"),
            ("feedback.limits.connections=0", "minimum"),
            ("feedback.limits.headSecond=5", "additional properties 'headSecond' not allowed"),
            (
                "stores[0].name=m,stores[0].uri=s3://m/,artifacts.uri=s3://a/,feedback.metricsPort=8080",
                "feedback.metricsPort: must differ",
            ),
            (
                "stores[0].name=m,stores[0].uri=s3://m/,artifacts.uri=s3://a/,prometheus[0].name=p,"
                "prometheus[0].url=https://p,prometheus[0].caSecret.name=a,prometheus[0].caConfigMap.name=b",
                "prometheus p: caSecret and caConfigMap are both there",
            ),
        ],
    )
    def test_mistakes_in_values_are_refused_with_words(self, setting: str, message: str) -> None:
        assert message in template(setting, values=None, ok=False)

    def test_what_is_switched_off_is_not_there(self) -> None:
        parts = (
            "feedback.enabled",
            "admissionPolicy.enabled",
            "rbac.userRoles",
            "crds.install",
            "podDisruptionBudget.enabled",
            "metrics.annotations",
        )
        made = objects(*(f"{part}=false" for part in parts))
        assert sorted({o["kind"] for o in made}) == [
            "ClusterRole",
            "ClusterRoleBinding",
            "ConfigMap",
            "Deployment",
            "Role",
            "RoleBinding",
            "ServiceAccount",
        ]
        assert "prometheus.io/scrape" not in str(made)


def test_metrics_of_the_feedback_service_have_a_port_of_their_own() -> None:
    """Who sends feedback reaches no metrics, and who scrapes nothing else."""
    (deployment,) = pick("full", "Deployment", f"{FULLNAME}-feedback")
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"]) != str(ports["http"])
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {
        "metrics"
    }
    (service,) = pick("full", "Service", f"{FULLNAME}-feedback")
    assert [p["targetPort"] for p in service["spec"]["ports"]] == ["http"]
    (monitor,) = pick("full", "PodMonitor", f"{FULLNAME}-feedback")
    assert [e["port"] for e in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    (policy,) = pick("full", "NetworkPolicy", f"{FULLNAME}-feedback")
    given = yaml.safe_load((CHART / "ci" / "full-values.yaml").read_text())["networkPolicy"]
    assert policy["spec"]["ingress"] == [
        {"ports": [{"port": "http"}], "from": given["feedbackFrom"]},
        {"ports": [{"port": "metrics"}], "from": given["metricsFrom"]},
    ]


def test_the_limits_of_the_feedback_service_reach_it_and_are_its_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (deployment,) = pick("default", "Deployment", f"{FULLNAME}-feedback")
    env = {e["name"]: e["value"] for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    monkeypatch.setenv(SETTINGS_ENV, env[SETTINGS_ENV])
    assert FeedbackSettings.from_environment() == FeedbackSettings()
    assert set(values()["feedback"]["limits"]) == {to_camel(name) for name in FeedbackLimits.model_fields}
    described = schema()["properties"]["feedback"]["properties"]["limits"]["properties"]
    assert {to_camel(name): field.description for name, field in FeedbackLimits.model_fields.items()} == {
        name: field["description"] for name, field in described.items()
    }


def test_jobs_reach_the_stores_and_little_else() -> None:
    from modelrollout.api import names

    of = {
        "jobs": {names.COMPONENT_RESOLVE, names.COMPONENT_PREPARE, names.COMPONENT_TUNE},
        "evaluate": {names.COMPONENT_EVALUATE},
    }
    for part, components in of.items():
        policies = pick("full", "NetworkPolicy", f"mro-model-rollout-operator-{part}")
        assert {p["metadata"]["namespace"] for p in policies} == {"models", "models-staging"}
        spec = policies[0]["spec"]
        (wanted,) = spec["podSelector"]["matchExpressions"]
        assert (wanted["key"], set(wanted["values"])) == (names.LABEL_COMPONENT, components)
        assert (spec["policyTypes"], "ingress" in spec) == (["Ingress", "Egress"], False)
        dns, *servers, stores = spec["egress"]
        assert {p["port"] for p in dns["ports"]} == {53}
        assert [s["to"] for s in servers] == [
            [{"podSelector": {"matchLabels": {names.LABEL_COMPONENT: names.COMPONENT_SERVER}}}]
        ] * (part == "evaluate")
        assert all({p["port"] for p in s["ports"]} == {names.PORT_HTTP, names.PORT_GRPC} for s in servers)
        assert stores["to"] == [{"ipBlock": {"cidr": "10.20.0.0/24"}}]
    assert pick("default", "NetworkPolicy") == []


@pytest.mark.parametrize(
    ("more", "says"),
    [([], "networkPolicy.jobs.namespaces"), (["namespaces={models}"], "networkPolicy.jobs.stores")],
)
def test_a_policy_for_jobs_that_lacks_something_is_refused(more: list[str], says: str) -> None:
    assert says in template("networkPolicy.jobs.enabled=true", *more, ok=False)


class TestPoliciesOfModels:
    ON = (
        "networkPolicy.models.mode=Write,networkPolicy.models.proxies.namespaces={gateways},networkPolicy.models.prometheus.addresses={10.0.0.9},"
        "networkPolicy.models.stores[0].addresses={10.20.0.0/24}"
    )

    def config(self, objects: list[dict[str, Any]], tmp_path: Path) -> NetworkPoliciesConfig | None:
        (tmp_path / "config.yaml").write_text(configuration(objects))
        return load_config(tmp_path / "config.yaml").network_policies

    def rights(self, objects: list[dict[str, Any]]) -> list[set[str]]:
        return [
            set(r["verbs"])
            for o in objects
            if o["kind"] in ("ClusterRole", "Role")
            for r in o["rules"]
            if "networkpolicies" in r["resources"]
        ]

    def test_ignored_the_operator_knows_nothing_of_them_and_has_no_right(self, tmp_path: Path) -> None:
        for which in ("default", "full"):
            assert (
                self.config(list(rendered(which)), tmp_path) is None
                and self.rights(list(rendered(which))) == []
            )

    def test_written_they_are_as_the_values_say_with_the_right_to_write_them(self, tmp_path: Path) -> None:
        made = objects(self.ON)
        config = self.config(made, tmp_path)
        assert config is not None and config.mode == "Write" and config.written_in("anywhere")
        assert (config.proxies.namespaces, config.prometheus.addresses) == (["gateways"], ["10.0.0.9/32"])
        assert (config.stores[0].addresses, config.stores[0].ports) == (["10.20.0.0/24"], [443])
        assert (config.dns.namespaces, config.dns.ports) == (["kube-system"], [53])
        assert self.rights(made) == [{"get", "list", "watch", "create", "patch", "delete"}]

    def test_in_each_namespace_that_is_named_and_to_remove_them_no_more_than_that(
        self, tmp_path: Path
    ) -> None:
        off = "networkPolicy.jobs.enabled=false,networkPolicy.models.mode=Remove"
        made = objects(self.ON, off, values="ci/full-values")
        config = self.config(made, tmp_path)
        assert config is not None and not config.written_in("models")
        assert self.rights(made) == [{"get", "list", "watch", "delete"}] * 2

    def test_the_values_are_those_of_the_configuration(self) -> None:
        models = values()["networkPolicy"]["models"]
        fields = {f.alias: f for f in NetworkPoliciesConfig.model_fields.values()}
        assert set(models) | {"operatorNamespace"} == set(fields) and models["mode"] == "Ignore", (
            "the chart knows where it runs"
        )
        for part in ("proxies", "prometheus", "dns"):
            assert models[part] == fields[part].get_default(call_default_factory=True).model_dump(
                exclude={} if part == "dns" else {"ports"}
            )

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("networkPolicy.models.proxies.namespaces=null", "networkPolicy.models.proxies: name where"),
            ("networkPolicy.models.stores=null", "networkPolicy.models.stores: name where"),
            ("networkPolicy.models.mode=On", "must be one of 'Ignore', 'Write', 'Remove'"),
            ("networkPolicy.models.proxies.addresses={gateway.example.com}", "does not match pattern"),
            ("networkPolicy.models.stores[0].ports={https}", "integer"),
            ("networkPolicy.models.proxies.namespace=gateways", "additional properties"),
            ("networkPolicy.jobs.enabled=true", "leave one of them out"),
        ],
    )
    def test_a_mistake_is_refused_with_words(self, change: str, says: str) -> None:
        assert says in template(self.ON, change, ok=False)
