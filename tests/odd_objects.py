"""Objects that the API server takes and that no program likes: deep, wide, huge and odd ones. As
text: Python's JSON writer ends at the deep ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

LABEL = "modelrollout.dev/name"
MIB = 1 << 20


def nested(depth: int, sign: str = "{") -> str:
    return '{"a":' * depth + "{}" + "}" * depth if sign == "{" else "[" * depth + "]" * depth


def odd_values(rng: random.Random) -> list[str]:
    """JSON of every kind, each anew: some small, some as large as the API server takes."""
    return [
        nested(1200), nested(rng.randrange(60, 1000)), nested(9000),
        '{"a":' + nested(rng.randrange(500, 5000), "[") + "}",
        '{"a":[' + ",".join(["[]"] * rng.randrange(1000, 120_000)) + "]}",
        '{"a":{' + ",".join(f'"k{i}":{{}}' for i in range(rng.randrange(100, 20_000))) + "}}",
        json.dumps({"a": "x" * rng.randrange(200_000, 900_000)}), json.dumps({"a": "<" * 100_000}),
        json.dumps({"k" * 100_000: 1}),
        "null", "[]", "3", '"text"', "true", "1e300", "{}",
        json.dumps({"metadata": {"name": "liar", "uid": "liar"}}),
        json.dumps({"a": '"metadata":{"name":"liar"}},{"'}),
        json.dumps({"\u0000": "\u0000", "\ud800".encode("utf-8", "replace").decode(): "\u202e"}),
    ]  # fmt: skip


def model_deployments(
    namespace: str, count: int, seed: int, api_version: str = "modelrollout.dev/v1alpha1"
) -> Iterator[tuple[str, str]]:
    """Name and text of ModelDeployments with something odd in one place; without a schema the API
    server takes nearly all of them.

    Their model lies in no store that an operator knows, so that those which are read are refused,
    and start no Jobs.
    """
    rng = random.Random(seed)
    for n in range(count):
        name = f"odd-{seed}-{n}"
        value = rng.choice(odd_values(rng))
        parts = {
            "metadata": json.dumps(
                {"name": name, "namespace": namespace, "labels": {LABEL: rng.choice(["victim", name])}}
            ),
            "spec": '{"model":{"uri":"s3://none-such/a.onnx"},"serving":{"resources":{"limits":{"cpu":1}}}}',
        }
        match rng.randrange(6):
            case 0 | 1:
                parts["spec"] = (
                    f'{{"model":{{"uri":"s3://none-such/a.onnx"}},"serving":{{"resources":{{"limits":{{"cpu":1}}}},"affinity":{value}}}}}'
                )
            case 2:
                parts["spec"] = value
            case 3:
                parts["status"] = rng.choice(
                    [value, f'{{"rollout":{value}}}', f'{{"conditions":{value}}}', f'{{"phase":{value}}}']
                )
            case 4:
                parts["spec"] = (
                    f'{{"model":{value},"traffic":{{"http":{{"hostnames":{value}}}}},"rollout":{value}}}'
                )
            case 5:
                note = "x" * rng.randrange(1, 250_000)
                parts["metadata"] = json.dumps(
                    {
                        "name": name,
                        "namespace": namespace,
                        "annotations": {"a": note},
                        "labels": {LABEL: "victim"},
                    }
                )
        yield (
            name,
            f'{{"apiVersion":"{api_version}","kind":"ModelDeployment",'
            + ",".join(f'"{k}":{v}' for k, v in parts.items())
            + "}",
        )


def children(namespace: str, of: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Path and text of pods, Services and routes that carry the label of another's ModelDeployment,
    and as much else as the API server takes.
    """
    rng = random.Random(seed)
    for n in range(count):
        metadata = {"name": f"odd-{seed}-{n}", "namespace": namespace, "labels": {LABEL: of}}
        large = {"a": "x" * rng.randrange(1, 250_000)}
        core, gateway = (
            f"/api/v1/namespaces/{namespace}",
            f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}",
        )
        kind = rng.randrange(4)
        if kind == 0:
            env = [{"name": f"E{i}", "value": "y" * 1000} for i in range(rng.randrange(1, 1200))]
            spec = {
                "containers": [{"name": "c", "image": "none", "env": env}],
                "automountServiceAccountToken": False,
                "nodeSelector": {"none": "such"},
            }
            yield (
                f"{core}/pods",
                json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
            )
        elif kind == 1:
            labels = {f"l{i}": "v" * 63 for i in range(rng.randrange(1, 5000))} | {LABEL: of}
            spec = {"selector": {"none": "such"}, "ports": [{"port": 80}]}
            yield (
                f"{core}/services",
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "Service",
                        "metadata": metadata | {"labels": labels},
                        "spec": spec,
                    }
                ),
            )
        elif kind == 2:
            spec = {"selector": {"none": "such"}, "ports": [{"port": 80}]}
            body = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata | {"annotations": large},
                "spec": spec,
            }
            yield f"{core}/services", json.dumps(body)
        else:
            body = {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": metadata | {"annotations": large},
                "spec": {},
            }
            yield f"{gateway}/httproutes", json.dumps(body)
