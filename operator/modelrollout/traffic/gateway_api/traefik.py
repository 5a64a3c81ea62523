"""Mirroring by Traefik's own TraefikService, for gateways without the RequestMirror filter."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import RevisionRef
from modelrollout.resources.common import Object, Owner, metadata
from modelrollout.resources.comparer import shadow_labels
from modelrollout.traffic.gateway_api.routes import with_rules

TRAEFIK_API = "traefik.io/v1alpha1"


def traefik_mirror(
    owner: Owner, canary: RevisionRef, stable: RevisionRef, percent: int, max_body_bytes: int
) -> Object:
    """Traefik's mirroring of stable's requests. It has stable's name, so that the route shows which
    revision answers.
    """
    return {
        "apiVersion": TRAEFIK_API,
        "kind": "TraefikService",
        "metadata": metadata(owner, stable.revision, shadow_labels(owner, canary)),
        "spec": {
            "mirroring": {
                "kind": "Service",
                "name": stable.revision,
                "port": names.PORT_HTTP,
                "mirrorBody": True,
                "maxBodySize": max_body_bytes,
                "mirrors": [
                    {
                        "kind": "Service",
                        "name": names.shadow_name(canary.revision),
                        "port": names.PORT_COMPARER,
                        "percent": percent,
                        # By the cluster IP: Traefik drops a TraefikService if one of its Services
                        # has no endpoints, and the clients' requests with it. This way a missing
                        # comparer is only a refused connection.
                        "nativeLB": True,
                    }
                ],
            }
        },
    }


def trial_route(owner: Owner, of_clients: Object, canary: RevisionRef, stable: RevisionRef) -> Object:
    """A route for a path that no client calls. The gateway accepts or rejects it as it would the
    clients' route with the mirror.
    """
    path = {"type": "Exact", "value": f"/.modelrollout/{owner.uid}/{canary.revision}"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata(owner, names.shadow_name(canary.revision), shadow_labels(owner, canary)),
        "spec": {
            "parentRefs": of_clients["spec"]["parentRefs"],
            "hostnames": of_clients["spec"]["hostnames"],
            "rules": [{"matches": [{"path": path}], "backendRefs": [_backend(stable)]}],
        },
    }


def _backend(stable: RevisionRef) -> Object:
    return {"group": "traefik.io", "kind": "TraefikService", "name": stable.revision, "weight": 100}


def with_traefik_mirror(route: Object, stable: RevisionRef) -> Object:
    """The HTTPRoute with the TraefikService in place of stable's Service."""

    def backend(ref: Object) -> Object:
        return _backend(stable) | {"weight": ref["weight"]} if ref["name"] == stable.revision else ref

    return with_rules(
        route, lambda rule: rule | {"backendRefs": [backend(ref) for ref in rule["backendRefs"]]}
    )
