"""What the story does to the cluster, and what it reads from it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import obstore
from kubernetes import config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from demo import DemoError
from demo.target import Target
from modelrollout.api import names

Object = dict[str, Any]

RELEASE = "model-rollout-operator"
SYSTEM_NAMESPACE = "model-rollout-system"
FEEDBACK_AUDIENCE = "modelrollout-feedback"
_API = f"/apis/{names.API_VERSION}"


class NotThereError(DemoError):
    """The object does not exist."""


class Cluster:
    """kubectl, helm and modelrollout for what a person would type; the API itself for what is read
    again and again.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        try:
            self._api: Any = config.new_client_from_config(  # type: ignore[no-untyped-call]
                config_file=str(target.kubeconfig) if target.kubeconfig else None, context=target.context
            )
        except config.ConfigException as e:
            raise DemoError(f"no access to the cluster: {e}") from e

    # --- reading ---

    def get(self, path: str) -> Object:
        """A GET of an API path. Raises NotThereError, DemoError."""
        return self._request("GET", path)

    def deployment(self, namespace: str, name: str) -> Object:
        return self.get(f"{_API}/namespaces/{namespace}/modeldeployments/{name}")

    def revision(self, namespace: str, name: str) -> Object:
        return self.get(f"{_API}/namespaces/{namespace}/modelrevisions/{name}")

    def pods(self, namespace: str, selector: str) -> list[Object]:
        return self._list(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")

    def jobs(self, namespace: str, selector: str) -> list[Object]:
        return self._list(f"/apis/batch/v1/namespaces/{namespace}/jobs?labelSelector={selector}")

    def service_address(self, namespace: str, name: str, port: int) -> str:
        """HOST:PORT of a Service by its ClusterIP."""
        return f"{self.get(f'/api/v1/namespaces/{namespace}/services/{name}')['spec']['clusterIP']}:{port}"

    def token(self, namespace: str, service_account: str, audience: str, seconds: int) -> str:
        """A new token of a service account."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": seconds},
        }
        answer = self._request(
            "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token", body
        )
        return str(answer["status"]["token"])

    def _list(self, path: str) -> list[Object]:
        items: list[Object] = self.get(path)["items"]
        return items

    def _request(self, method: str, path: str, body: Object | None = None) -> Object:
        path, _, query = path.partition("?")
        parts = self._api.param_serialize(
            method,
            path,
            query_params=[tuple(pair.split("=", 1)) for pair in query.split("&")] if query else [],
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._api.call_api(*parts, _request_timeout=10)
            response.read()
        except ApiException as e:
            raise _refused(path, e.status, str(e.body or e.reason)) from e
        except HTTPError as e:
            raise DemoError(f"{path}: {e}") from e
        if response.status >= 300:
            raise _refused(path, response.status, response.data.decode(errors="replace"))
        answer: Object = json.loads(response.data)
        return answer

    # --- doing ---

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        context = ["--context", self.target.context] if self.target.context else []
        return self._run([self.target.tool("kubectl"), *context, *arguments], stdin, timeout)

    def helm(self, *arguments: str, stdin: str | None = None, timeout: float = 600) -> str:
        context = ["--kube-context", self.target.context] if self.target.context else []
        return self._run([self.target.tool("helm"), *arguments, *context], stdin, timeout)

    def modelrollout(self, *arguments: str, timeout: float = 120) -> str:
        """The command line of the project."""
        context = ["--context", self.target.context] if self.target.context else []
        return self._run([sys.executable, "-m", "modelrollout.cli.main", *arguments, *context], None, timeout)

    def apply(self, *objects: Object) -> None:
        """Server-side, as a user or Argo CD would."""
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--field-manager=demo", "-f", "-", stdin=manifest)

    def fresh_namespace(self, name: str, limit: float = 180) -> None:
        """An empty namespace: what an earlier story left is removed, first of all its
        ModelDeployments.
        """
        self.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
        deadline = time.monotonic() + limit
        while True:
            try:
                self.get(f"/api/v1/namespaces/{name}")
            except NotThereError:
                break
            if time.monotonic() > deadline:
                raise DemoError(
                    f"namespace {name} is still being deleted after {limit:.0f} s; see: kubectl get namespace"
                    f" {name} -o yaml"
                )
            time.sleep(1)
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def upload(self, bucket: str, files: Mapping[str, Path]) -> None:
        """Put files under their keys."""
        s3 = self.bucket(bucket)
        for key, path in files.items():
            try:
                obstore.put(s3, key, path)
            except obstore.exceptions.BaseError as e:
                raise DemoError(f"cannot write s3://{bucket}/{key} to the object store: {e}") from e

    def bucket(self, name: str) -> obstore.store.S3Store:
        """A bucket of the object store, as this machine reaches it."""
        store = self.target.store
        return obstore.store.S3Store(
            name,
            endpoint=store.endpoint,
            region=store.region,
            access_key_id=store.access_key,
            secret_access_key=store.secret_key,
            client_options={"allow_http": store.endpoint.startswith("http:")},
        )

    def _run(self, command: list[str], stdin: str | None, timeout: float) -> str:
        try:
            ran = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=self.target.environment(),
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            raise DemoError(f"{' '.join(command)}: no end after {timeout:.0f} s") from e
        if ran.returncode:
            raise DemoError(
                f"{' '.join(command)}: exit code {ran.returncode}\n{(ran.stderr or ran.stdout).strip()}"
            )
        return ran.stdout


def secret(namespace: str, name: str, values: Mapping[str, str]) -> Object:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def _refused(path: str, status: int | None, text: str) -> DemoError:
    kind = NotThereError if status == 404 else DemoError
    return kind(f"{path}: {status} {text.strip()[:500]}")
