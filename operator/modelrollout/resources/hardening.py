"""Keeps everyone but the kubelet from managing a model server.

A server has one immutable repository with one version, so nothing of it is ever loaded, unloaded or
changed while it runs: model control is ``none``, the files are mounted read-only, and the endpoints
that manage a server ask for a key that is the pod's own (docs/reference/endpoints.md). vLLM's
backend unloads its model when its engine has died, which model control ``none`` refuses: it has
``explicit``, behind a random key.

The same is applied to templates that an earlier operator froze, once new pods of them are
requested; with it comes the flag for Triton's own histogram of latencies.
docs/reference/endpoints.md lists the changes; everything else in the template stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from modelrollout.api import names
from modelrollout.contract.common import REPOSITORY, SERVES_ENV
from modelrollout.resources.common import Object
from modelrollout.triton import histogram

VERSION = "2"
TRITON = "triton"
MODELS = "models"  # the volume that the init container fills
KEY_HEADER = "x-modelrollout-key"
_KEY_ENV = "POD_UID"
VISIBLE_GPUS = "NVIDIA_VISIBLE_DEVICES"
# Triton's names of what is restricted; inference, health, metadata, configuration and statistics
# stay open (docs of Triton, "Limit Endpoint Access").
_REPOSITORY = "model-repository"
RESTRICTED = (_REPOSITORY, "shared-memory", "trace", "logging")
# Starts tritonserver with a key to its model repository that is random and in no object: with
# model control explicit, whoever has it could load a model of their own.
_WITH_A_SECRET_KEY = (
    f"read -r key < /proc/sys/kernel/random/uuid && key={_REPOSITORY}:{KEY_HEADER}=$key && exec tritonserver"
    ' "$@" --http-restricted-api=$key --grpc-restricted-protocol=$key'
)
# Where the server looks for its model: the same files, mounted once more so that the root of the
# repository has nothing but the one model. With model control none every other entry there would
# count as a model that cannot be loaded.
SERVED = "/repository"
_OWN_FLAGS = (
    "--model-repository",
    "--model-control-mode",
    "--load-model",
    "--log-info",
    "--http-restricted-api",
    "--grpc-restricted-protocol",
)
DIED = "a Python process of the model has died"
# Triton before 25.12 says that a model is ready whose Python process (the "stub" of its Python
# backend) is dead, and starts no other (its issues 7230 and 8604, pull request 8552). So the
# children of tritonserver that were stubs when it had started are looked at: one that is gone or a
# zombie is dead. A fork of a stub has another parent, a stub that renames itself keeps its number,
# and a restarted container has another list. That the server is slow to answer is no
# evidence against it: only that it twice gives no answer within 50 s. This needs a shell, for the
# latter bash and timeout.
_ALIVE = f"""\
died() {{ echo "{DIED}"; echo "{DIED}" > /dev/termination-log; exit 1; }}
read -r line < /proc/1/stat; set -- ${{line##*) }}; list=/tmp/.stubs-of-${{20}}
if [ ! -e $list ]; then
  stubs=
  for p in /proc/[0-9]*; do
    {{ read -r line < $p/stat; }} 2>/dev/null || continue
    case $line in *"(triton_python_b) "*) ;; *) continue ;; esac
    set -- ${{line##*) }}
    {{ read -r parent < /proc/$2/stat; }} 2>/dev/null || continue
    case $parent in *"(tritonserver) "*) stubs="$stubs $p" ;; esac
  done
  echo "$stubs" > $list.new && mv $list.new $list
fi
{{ read -r stubs < $list; }} 2>/dev/null || stubs=
for p in $stubs; do
  {{ read -r line < $p/stat; }} 2>/dev/null || died
  case ${{line##*) }} in Z*) died ;; esac
done
command -v bash > /dev/null && command -v timeout > /dev/null || exit 0
exec timeout 50 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{names.PORT_HTTP} && printf "GET /v2/health/live HTTP/1.0\\r\\n\\r\\n" >&3 \\
  && read -r answer <&3 && [[ $answer == *" 200 "* ]]'
"""  # noqa: E501
LIVENESS: Object = {
    "exec": {"command": ["sh", "-c", _ALIVE]},
    "periodSeconds": 3,
    "timeoutSeconds": 60,
    "failureThreshold": 2,
    # What has died drains nothing, and until it is gone it gets requests that fail.
    "terminationGracePeriodSeconds": 1,
}
# A bash that takes no options and functions from its environment: SHELLOPTS with PS4 runs programs.
_LIVENESS_IN_ANY_ENV: Object = LIVENESS | {
    "exec": {"command": ["sh", "-c", _ALIVE.replace("bash -c ", "bash -p -c ")]}
}
# What the operator itself writes into the server's environment.
_OWN_ENV = frozenset({"HOME", VISIBLE_GPUS, _KEY_ENV})


def harden(template: Object, model: str, version: str = VERSION) -> Object:
    """The pod template with all of this over it; equal to the template if it has it already. A
    version that is not known is taken for the latest.
    """
    spec, meta = template["spec"], template.get("metadata") or {}
    annotations = (meta.get("annotations") or {}) | {
        names.ANNOTATION_HARDENED: version if version in _OVERLAYS else VERSION
    }
    lay, vllm = _OVERLAYS.get(version, _OVERLAYS[VERSION]), _serves_vllm(template)
    servers = [lay(c, model, vllm) if c["name"] == TRITON else c for c in spec["containers"]]
    return template | {
        "metadata": meta | {"annotations": annotations},
        "spec": spec | {"containers": servers},
    }


def hardening_version(template: Object, model: str) -> str | None:
    """The version of it that this pod template has, also one that the API server has filled with
    defaults; None: it is not hardened.

    The version that a newer operator records is trusted. A template of another form is not
    hardened.
    """
    version = overlay_of(template)
    try:
        servers = [c for c in template["spec"]["containers"] if c["name"] == TRITON]
        vllm = _serves_vllm(template)
        if version is None or not servers:
            return None
        return (
            version
            if not is_known(version) or all(_has(c, _OVERLAYS[version](c, model, vllm)) for c in servers)
            else None
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def is_latest(version: str | None) -> bool:
    """Whether a template of this version gets nothing new at a restart: the latest, or one of a
    newer operator.
    """
    return version is not None and (version == VERSION or version not in _OVERLAYS)


def is_known(version: str | None) -> bool:
    """Whether this operator can lay it over a template; None is the latest."""
    return version is None or version in _OVERLAYS


def overlay_of(template: Object) -> str | None:
    """The version that the template itself says it has."""
    annotations = (template.get("metadata") or {}).get("annotations")
    version = annotations.get(names.ANNOTATION_HARDENED) if isinstance(annotations, dict) else None
    return None if version is None else str(version)


def for_tuning(server: Object) -> Object:
    """A server of a frozen template that only the program beside it manages: the model is loaded
    under one configuration after the other.

    It listens on the loopback address alone, where no kubelet can ask it, so it has no probes: the
    program waits until it answers.
    """
    container = {
        key: value
        for key, value in server.items()
        if key not in ("lifecycle", "startupProbe", "readinessProbe", "livenessProbe", "ports")
    }
    loopback = [f"--{part}-address=127.0.0.1" for part in ("http", "grpc", "metrics")]
    args = [f"--model-repository={REPOSITORY}", "--model-control-mode=explicit", *_others(server), *loopback]
    return container | {
        "args": args,
        "volumeMounts": [{"name": MODELS, "mountPath": REPOSITORY, "readOnly": True}, *_other_mounts(server)],
    }


def _serves_vllm(template: Object) -> bool:
    """Whether vLLM's backend serves the model, as its init container knows."""
    for container in template["spec"].get("initContainers") or []:
        for variable in container.get("env") or []:
            if variable["name"] == SERVES_ENV and "value" in variable:
                return bool(json.loads(variable["value"]).get("backend") == "VLLM")
    return False


def _server(container: Object, model: str, vllm: bool) -> Object:
    """Version 1."""
    key = {"name": _KEY_ENV, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    restricted = f"{','.join(RESTRICTED)}:{KEY_HEADER}=$({_KEY_ENV})"
    args = [
        f"--model-repository={SERVED}",
        "--model-control-mode=none",
        # The last lines are the pod's termination message: they say why a model was not loaded, and
        # would be tables of settings otherwise.
        "--log-info=false",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        *_others(container),
    ]
    mounts = [
        {"name": MODELS, "mountPath": REPOSITORY, "readOnly": True},
        {"name": MODELS, "mountPath": f"{SERVED}/{model}", "subPath": model, "readOnly": True},
        *_other_mounts(container),
    ]
    env = [key, *(e for e in container.get("env") or [] if e["name"] != _KEY_ENV)]
    return container | {"args": args, "env": env, "volumeMounts": mounts, "livenessProbe": LIVENESS}


def _counting_server(container: Object, model: str, vllm: bool) -> Object:
    """Version 2: it also counts the latencies of its requests, if its Triton does
    (``triton.histogram``), vLLM's backend may unload its model, and the probe takes nothing from an
    environment that a spec has a part in.
    """
    hardened = _server(container, model, vllm)
    counting = hardened | {"args": [*(a for a in hardened["args"] if a != histogram.FLAG), histogram.FLAG]}
    if not {e["name"] for e in hardened["env"]} <= _OWN_ENV:
        counting["livenessProbe"] = _LIVENESS_IN_ANY_ENV
    return _unloading_itself(counting, model) if vllm else counting


def _unloading_itself(container: Object, model: str) -> Object:
    """A server whose backend may unload its model, and whoever reads the pod's uid may not."""
    others = ",".join(r for r in RESTRICTED if r != _REPOSITORY)
    args = [
        a.replace(",".join(RESTRICTED), others)
        for a in container["args"]
        if a.partition("=")[0] not in ("--model-control-mode", "--load-model")
    ]
    mode = ["--model-control-mode=explicit", f"--load-model={model}"]
    return container | {"command": ["sh", "-c", _WITH_A_SECRET_KEY, "tritonserver"], "args": [*mode, *args]}


# What is laid over a frozen template must not change with the operator, or its upgrade would
# restart pods: a change is another version, and those that are there stay as they are. New
# templates, and restarts, take the latest.
_OVERLAYS: Mapping[str, Callable[[Object, str, bool], Object]] = {
    "1": _server,
    VERSION: _counting_server,
}


def _others(container: Object) -> list[str]:
    return [a for a in container.get("args") or [] if a.partition("=")[0] not in _OWN_FLAGS]


def _other_mounts(container: Object) -> list[Any]:
    return [m for m in container.get("volumeMounts") or [] if m["name"] != MODELS]


def _has(live: Object, desired: Object) -> bool:
    """Only command, flags and mounts decide: the rest concerns the detection of a dead server."""
    mounts = {
        (m["name"], m["mountPath"], m.get("subPath", ""), bool(m.get("readOnly")))
        for m in live.get("volumeMounts") or []
    }
    needed = {
        (m["name"], m["mountPath"], m.get("subPath", ""), bool(m.get("readOnly")))
        for m in desired["volumeMounts"]
    }
    same = (live.get("command"), live.get("args")) == (desired.get("command"), desired["args"])
    return same and mounts == needed
