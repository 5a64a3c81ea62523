"""python -m gitops.modes: every example and the chart by each way in which Argo CD applies and
compares, on the sandbox of this checkout.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from chaos.recorder import Recorder
from demo import DemoError, target
from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster, Object
from demo.narrator import Narrator, heed_signals
from demo.setup import CHART, chart_values, install_operator, prepare_namespace
from gitops import GitopsError, judge
from gitops.argo import ArgoCD
from gitops.git import GitServer, Repository
from gitops.story import ARGO_API, ARGO_NAMESPACE, NAMESPACE, SERVER
from sandbox.cluster import Sandbox, SandboxError
from sandbox.kube import Api
from sandbox.scope import Scope
from sandbox.shell import CommandError, WaitError

CHECKOUT = Path(__file__).resolve().parents[2]
APPLICATION = "Application"
APPLICATIONS = f"/apis/{ARGO_API}/namespaces/{ARGO_NAMESPACE}/applications"
SYNC_SECONDS = 300.0
REST_SECONDS = 10.0  # in which the operator writes its first status, and Argo CD may heal itself
LOOK_SECONDS = 0.5
FAILURES = (GitopsError, DemoError, SandboxError, CommandError, WaitError)


@dataclass(frozen=True)
class Mode:
    """How Argo CD applies, and how it compares."""

    server_side: bool
    server_diff: bool

    def __str__(self) -> str:
        apply = "server-side apply" if self.server_side else "client-side apply"
        return f"{apply}{', ServerSideDiff' if self.server_diff else ''}"


MODES = tuple(Mode(apply, diff) for apply in (False, True) for diff in (False, True))


def examples(folder: Path) -> dict[str, str]:
    """Text by name of each example, as it stands, but for its name and namespace: some are of one
    model, and all are tried at once.
    """
    made: dict[str, str] = {}
    for path in sorted(folder.glob("*.yaml")):
        text = re.sub(r"(?m)(^metadata:\s(?:{|\s+)name: )[\w-]+", rf"\g<1>{path.stem}", path.read_text())
        made[path.stem] = re.sub(
            r"(?m)(^metadata:.*namespace: |^  namespace: )models\b", rf"\g<1>{NAMESPACE}", text
        )
    return made


def application(name: str, source: Object, namespace: str, mode: Mode) -> Object:
    """An Application that is synced by itself, and heals itself."""
    options = ["ServerSideApply=true"] if mode.server_side else []
    compare = {"argocd.argoproj.io/compare-options": "ServerSideDiff=true"} if mode.server_diff else {}
    return {
        "apiVersion": ARGO_API,
        "kind": "Application",
        "metadata": {"name": name, "namespace": ARGO_NAMESPACE, "annotations": compare},
        "spec": {
            "project": "default",
            "source": {**source, "targetRevision": "main"},
            "destination": {"server": SERVER, "namespace": namespace},
            "syncPolicy": {"automated": {"selfHeal": True}, "syncOptions": options},
        },
    }


def synced_at_once(application: Object) -> Object:
    """The same with a sync of its own: the chart is installed already, and where nothing differs
    Argo CD would apply nothing.
    """
    sync = {"syncOptions": application["spec"]["syncPolicy"]["syncOptions"]}
    return {**application, "operation": {"initiatedBy": {"username": "lab"}, "sync": sync}}


def outcome(application: Object, syncs: int) -> str:
    """``Synced``, or what is wrong."""
    status = application.get("status") or {}
    sync, state = (status.get("sync") or {}).get("status"), status.get("operationState") or {}
    differing = [
        f"{r['kind']} {r['name']}" for r in status.get("resources") or [] if r.get("status") != "Synced"
    ]
    if sync != "Synced" or state.get("phase") != "Succeeded":
        why = " ".join(judge.complaint(application).split())
        return ": ".join(filter(None, (f"{sync}, {state.get('phase')}", ", ".join(differing), why)))
    return "Synced" if syncs == 1 else f"Synced {syncs} times"


class Modes(Scope):
    """A context manager around a real Argo CD and a repository with all manifests."""

    def __init__(self, cluster: Cluster, folder: Path, say: Callable[[str], None]) -> None:
        super().__init__()
        self._cluster, self._folder, self._say = cluster, folder, say
        self._box = Sandbox()
        self.results: dict[str, dict[Mode, str]] = {}

    def _set_up(self) -> None:
        cluster = self._cluster
        install_operator(cluster, self._folder)
        prepare_namespace(cluster, NAMESPACE)
        self._stack.callback(self._leave)
        repository = Repository(self._folder / "git")
        self._examples = examples(CHECKOUT / "examples")
        files = {f"examples/{name}/{name}.yaml": text for name, text in self._examples.items()}
        chart = {
            f"chart/{p.relative_to(CHART)}": p.read_text() for p in sorted(CHART.rglob("*")) if p.is_file()
        }
        repository.commit("examples and chart", files | chart)
        server = self._stack.enter_context(GitServer(self._folder / "git"))
        self._url = server.url(repository.bare)
        self._argo = self._stack.enter_context(
            ArgoCD(
                cluster,
                self._box.state.kubeconfig,
                self._folder / "argo-cd",
                self._say,
                namespaces=(NAMESPACE, SYSTEM_NAMESPACE),
            )
        )
        anything = [{"group": "*", "kind": "*"}]
        cluster.apply(
            {
                "apiVersion": ARGO_API,
                "kind": "AppProject",
                "metadata": {"name": "default", "namespace": ARGO_NAMESPACE},
                "spec": {
                    "sourceRepos": ["*"],
                    "destinations": [{"server": "*", "namespace": "*"}],
                    "clusterResourceWhitelist": anything,
                },
            }
        )
        self._say(f"Argo CD runs and reads {self._url}")

    def _leave(self) -> None:
        with suppress(DemoError):  # the API server is away
            self._delete_examples()
            self._cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")

    def _delete_examples(self) -> None:
        policies = [
            o["metadata"]["name"]
            for text in self._examples.values()
            for o in yaml.safe_load_all(text)
            if o["kind"] == judge.POLICY
        ]
        self._cluster.kubectl("delete", "rpol", *policies, "--ignore-not-found")
        self._cluster.kubectl("delete", "mdep", "--all", "-n", NAMESPACE)

    def try_one(self, mode: Mode) -> None:
        """Apply all manifests in this mode, and note what Argo CD shows of each at rest."""
        wanted = {
            name: application(name, {"repoURL": self._url, "path": f"examples/{name}"}, NAMESPACE, mode)
            for name in self._examples
        }
        values = yaml.safe_dump(chart_values(self._cluster.target))
        helm = {"releaseName": RELEASE, "values": values}
        source = {"repoURL": self._url, "path": "chart", "helm": helm}
        wanted["the chart"] = synced_at_once(application(RELEASE, source, SYSTEM_NAMESPACE, mode))
        recorder = Recorder(
            lambda: Api.of(self._box.state.kubeconfig, self._box.state.pki, "sandbox"),
            NAMESPACE,
            {APPLICATION: APPLICATIONS},
        )
        recorder.start()
        try:
            self._cluster.apply(*wanted.values())
            names = [a["metadata"]["name"] for a in wanted.values()]
            self._until_over(recorder, names)
            time.sleep(REST_SECONDS)
            # "hard": the manifests are rendered and compared again, nothing is taken from memory
            again = "argocd.argoproj.io/refresh=hard"
            self._cluster.kubectl(
                "annotate", "applications.argoproj.io", "--all", again, "--overwrite", "-n", ARGO_NAMESPACE
            )
            self._until_refreshed(recorder, names)
            for title, wish in wanted.items():
                versions = recorder.versions(APPLICATION, wish["metadata"]["name"])
                self.results.setdefault(title, {})[mode] = outcome(
                    versions[-1], len(judge.operations(versions))
                )
        finally:
            recorder.stop()
            self._cluster.kubectl("delete", "applications.argoproj.io", "--all", "-n", ARGO_NAMESPACE)
            self._delete_examples()
        good = sum(by_mode[mode] == "Synced" for by_mode in self.results.values())
        self._say(f"{mode}: {good} of {len(wanted)} Synced")

    def _until_over(self, recorder: Recorder, names: Sequence[str]) -> None:
        """Until each has been synced, or has failed."""

        def is_over(name: str) -> bool:
            status = (recorder.versions(APPLICATION, name)[-1:] or [{}])[0].get("status") or {}
            return (status.get("operationState") or {}).get("phase") in ("Succeeded", "Failed", "Error")

        self._until(lambda: [n for n in names if not is_over(n)])

    def _until_refreshed(self, recorder: Recorder, names: Sequence[str]) -> None:
        """Argo CD takes the annotation away once it has compared."""

        def is_waiting(name: str) -> bool:
            newest = recorder.versions(APPLICATION, name)[-1]
            return "argocd.argoproj.io/refresh" in (newest["metadata"].get("annotations") or {})

        time.sleep(1)  # the annotation has been seen
        self._until(lambda: [n for n in names if is_waiting(n)])

    def _until(self, missing: Callable[[], list[str]]) -> None:
        end = time.monotonic() + SYNC_SECONDS
        while left := missing():
            self._argo.check()
            if time.monotonic() > end:
                raise GitopsError(f"not within {SYNC_SECONDS:.0f} s: Argo CD is done with {', '.join(left)}")
            time.sleep(LOOK_SECONDS)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of modes.json and logs; emptied.")] = CHECKOUT
    / ".cache"
    / "gitops-modes",
) -> None:
    """Every example and the chart, by client-side and server-side apply, each with and without
    ServerSideDiff. Exit code 1 unless all are Synced at rest, by one sync.
    """
    heed_signals()
    narrator = Narrator()
    console, say = narrator.console, narrator.say
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    finished = False
    results: dict[str, dict[Mode, str]] = {}
    try:
        with Modes(Cluster(target.sandbox(None, None)), out, say) as modes:
            results = modes.results
            for mode in MODES:
                modes.try_one(mode)
            finished = True
    except KeyboardInterrupt:
        say("interrupted")
    except FAILURES as e:
        typer.echo(f"gitops: {e}", err=True)
    table = Table(box=None, pad_edge=False)
    for column in ("", *map(str, MODES)):
        table.add_column(column, overflow="fold")
    for title, by_mode in sorted(results.items()):
        table.add_row(title, *(by_mode.get(mode, "") for mode in MODES))
    console.print(table)
    report: dict[str, Any] = {t: {str(m): text for m, text in by.items()} for t, by in results.items()}
    (out / "modes.json").write_text(json.dumps(report, indent=1))
    wrong = [text for by_mode in results.values() for text in by_mode.values() if text != "Synced"]
    console.print(
        Text(
            f"gitops modes: {len(results)} manifests, {len(MODES)} modes, {len(wrong)} not Synced by one sync"
        )
    )
    if not finished or wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
