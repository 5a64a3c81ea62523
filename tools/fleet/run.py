"""The phases of a run, and their figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from fleet import FleetError, objects, servers
from fleet.api import Api, ApiError
from fleet.control_plane import OPERATOR, WORLD, ControlPlane
from fleet.process import MeasuredProcess, Rest, operator
from fleet.requests import Requests, writes
from fleet.world import World
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, HTTP_ROUTE, MODEL_DEPLOYMENT, Resource
from modelrollout.kube.objects import Object
from sandbox import build_parts
from sandbox.paths import CHECKOUT, cache_root
from sandbox.shell import free_ports

CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
PHASES = ("create", "idle", "canary", "restart")
OURS = "ours"  # who is measured; Argo Rollouts is to be "argo"
_AT_ONCE = 8  # objects that are applied at one time
_LOOK_SECONDS = 0.5
_SAY_SECONDS = 15.0
_PATIENCE_SECONDS, _PATIENCE_EACH = 300.0, 5.0  # until a phase is given up, and more for each object
Say = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """What one phase cost. Times are seconds, CPU and requests those of the operator; of the phase
    itself and of what it does afterwards until it rests.
    """

    count: int  # objects
    wall: float  # until the last object was done
    cpu: float
    kinds: Counter[str]  # of requests
    peak_mb: float
    resident_mb: float

    @property
    def per_object(self) -> dict[str, float]:
        """Requests of each kind for each object."""
        return {kind: n / self.count for kind, n in self.kinds.most_common()}

    def lines(self, who: str, phase: str) -> Iterable[str]:
        """``fleet.WHO.N.PHASE.FIGURE: value``, and a remark on the requests."""
        figures = {
            "wall_s": f"{self.wall:.1f}",
            "cpu_ms": f"{self.cpu / self.count * 1000:.1f}",
            "requests": f"{self.kinds.total() / self.count:.2f}",
            "writes": f"{sum(writes(self.kinds).values()) / self.count:.2f}",
            "peak_mb": f"{self.peak_mb:.0f}",
            "resident_mb": f"{self.resident_mb:.0f}",
        }
        for name, value in figures.items():
            yield f"fleet.{who}.{self.count}.{phase}.{name}: {value}"
        shown = [f"{n:.2f} {kind}" for kind, n in self.per_object.items() if n >= 0.005]
        yield f"# {phase}, for each object: {', '.join(shown) or 'nothing'}"


class Fleet:
    """N objects, the operator, and the world; ``fleet`` makes one."""

    def __init__(
        self,
        count: int,
        api: Api,
        world: World,
        playing: asyncio.Task[None],
        process: MeasuredProcess,
        requests: Requests,
        say: Say,
    ) -> None:
        """``playing``: the world's task."""
        self.count = count
        self._api, self._world, self._playing = api, world, playing
        self._process, self._requests, self._say = process, requests, say

    async def start(self) -> None:
        """The operator starts and rests."""
        self._process.start()
        await self._rest("start")
        self._requests.since_last()

    async def create(self) -> Figures:
        """All objects are created, and their first version serves."""
        return await self._version(1, lambda i: self._api.create(MODEL_DEPLOYMENT, objects.model(i)))

    async def canary(self) -> Figures:
        """All get a new version at once, and it is promoted."""
        return await self._version(
            2, lambda i: self._api.patch(MODEL_DEPLOYMENT, objects.model(i), {"spec": objects.source(i, 2)})
        )

    async def idle(self, seconds: float) -> Figures:
        """Nothing happens for so long."""
        began, used = time.monotonic(), self._begin()
        await asyncio.sleep(seconds)
        return self._figures(time.monotonic() - began, used)

    async def restart(self) -> Figures:
        """The operator is killed and started again, until it rests."""
        self._process.kill()
        began = time.monotonic()
        self._process.start()
        return self._figures(await self._rest("restart") - began, 0.0)

    async def _version(self, version: int, apply: Callable[[int], Awaitable[object]]) -> Figures:
        """Apply every object, and wait until each serves that version."""
        began, used = time.monotonic(), self._begin()
        numbers = iter(range(self.count))

        async def user() -> None:
            for i in numbers:
                await apply(i)

        deadline = began + _PATIENCE_SECONDS + _PATIENCE_EACH * self.count
        await asyncio.gather(self._all_done(version, deadline), *(user() for _ in range(_AT_ONCE)))
        wall = time.monotonic() - began
        await self._rest(f"version {version}")
        return self._figures(wall, used)

    async def _all_done(self, version: int, deadline: float) -> None:
        """Returns with the last one; says how far it is meanwhile."""
        models, said = self._world.models, 0.0
        while True:
            waiting = [o for o in models.values() if not objects.is_done(o, version)]
            if len(models) == self.count and not waiting:
                return
            now = time.monotonic()
            if now > deadline:
                raise FleetError(_stuck(version, self.count, waiting))
            if now - said >= _SAY_SECONDS:
                phases = Counter((o.get("status") or {}).get("phase", "New") for o in waiting)
                said, listed = now, ", ".join(f"{n} {phase}" for phase, n in phases.most_common())
                self._say(f"# version {version}: {len(models) - len(waiting)} of {self.count} done; {listed}")
            await asyncio.sleep(_LOOK_SECONDS)
            self._process.cpu_seconds()  # fails where the operator has ended
            if self._playing.done():
                raise FleetError("the world has ended") from self._playing.exception()

    async def _rest(self, what: str) -> float:
        """Wait until the operator rests; since when."""
        rest, deadline = Rest(self._process), time.monotonic() + _PATIENCE_SECONDS
        while (since := rest.since()) is None:
            if time.monotonic() > deadline + _PATIENCE_EACH * self.count:
                raise FleetError(f"{what}: the operator does not come to rest; see its log")
            await asyncio.sleep(_LOOK_SECONDS)
        return since

    def _begin(self) -> float:
        self._process.forget_peak()
        self._requests.since_last()
        return self._process.cpu_seconds()

    def _figures(self, wall: float, used: float) -> Figures:
        process = self._process
        return Figures(
            self.count,
            wall,
            process.cpu_seconds() - used,
            self._requests.since_last(),
            process.peak_mb(),
            process.resident_mb(),
        )


@dataclass(frozen=True)
class Stage:
    """A control plane and the world, without an operator."""

    plane: ControlPlane
    api: Api
    world: World
    playing: asyncio.Task[None]
    prometheus: str  # its URL

    def process(self, folder: Path, name: str = "operator", **config: object) -> MeasuredProcess:
        """An operator that has not started, with these fields of its configuration beside those of
        the fleet; its log is NAME.log.
        """
        file = folder / f"{name}.json"
        file.write_text(json.dumps(objects.configuration(self.prometheus) | config))
        (port,) = free_ports(1)
        command = operator(file, self.plane.kubeconfig(OPERATOR), port, name)
        return MeasuredProcess(command, folder / f"{name}.log")


@asynccontextmanager
async def stage(folder: Path, say: Say) -> AsyncIterator[Stage]:
    """``folder`` takes everything that is written."""
    with ControlPlane(folder) as plane:
        say(f"# API server at {plane.server}, logs in {folder}")
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(servers.prometheus())
            pod_address = await stack.enter_async_context(servers.triton())
            api = await stack.enter_async_context(Api(plane.server, plane.trust(WORLD)))
            world = World(api, pod_address)
            await _prepare(api, world, plane)
            playing = asyncio.create_task(world.run())
            stack.push_async_callback(_end, playing)
            yield Stage(plane, api, world, playing, url)


@asynccontextmanager
async def fleet(count: int, folder: Path, say: Say) -> AsyncIterator[Fleet]:
    """A control plane, the world, and the operator, which has started; ``folder`` takes everything
    that they write.
    """
    async with stage(folder, say) as on:
        process = on.process(folder)
        try:
            made = Fleet(count, on.api, on.world, on.playing, process, Requests(on.plane.audit), say)
            await made.start()
            yield made
        finally:
            process.stop()


async def _prepare(api: Api, world: World, plane: ControlPlane) -> None:
    """The definitions, and what the platform team creates."""
    files = [
        *sorted((CHECKOUT / "crds").glob("*.yaml")),
        build_parts.crds(cache_root() / "logs" / "crds.log")[0],
    ]
    definitions = [d for file in files for d in yaml.safe_load_all(file.read_text()) if d]
    for definition in definitions:
        if definition["kind"] == CRD.kind:
            await api.create(CRD, definition)
    for resource in (MODEL_DEPLOYMENT, HTTP_ROUTE, GATEWAY):
        await _served(api, resource)
    made = {}
    for resource, obj in objects.platform():
        made[resource] = await api.create(resource, obj)
    await world.open_gateway(made[GATEWAY_CLASS], made[GATEWAY])


async def _served(api: Api, resource: Resource) -> None:
    """Wait until a kind that was just defined is served."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            await api.get(resource.path(None))
            return
        except ApiError as e:
            if e.status != 404 or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _stuck(version: int, count: int, waiting: Sequence[Object]) -> str:
    text = f"version {version}: {len(waiting)} of {count} are not done in time"
    if not waiting:
        return f"{text}; some were never seen"
    o = waiting[0]
    return f"{text}; {o['metadata']['name']} has the status {json.dumps(o.get('status'))}"
