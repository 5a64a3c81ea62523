"""python -m sandbox: the commands."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandbox import build_images, build_parts, configs, control, packages, slots
from sandbox.cluster import Record, Sandbox, SandboxError
from sandbox.configs import ADDONS, ORDER, Options
from sandbox.paths import State, cache_root, state_root
from sandbox.progress import Progress, StepError
from sandbox.shell import CommandError, WaitError, tail
from sandbox.slots import NODES


def _console(*, stderr: bool = False) -> Console:
    """Not on a terminal, lines are not broken: paths stay whole."""
    plain = Console(stderr=stderr, highlight=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=400)


out = _console()
err = _console(stderr=True)
PARTS = (*ORDER, *ADDONS)
GATEWAYS = ("traefik", "envoy")


def _add_up(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    d = Options()
    p = sub.add_parser("up", help="bring the sandbox up, or check it and load changed images when it runs")
    p.add_argument("--gpus", type=int, default=d.gpus, help=f"GPUs of the GPU node (default {d.gpus})")
    p.add_argument(
        "--gpu-product",
        default=d.gpu_product,
        help=f"its label {configs.GPU_LABEL} (default {d.gpu_product})",
    )
    p.add_argument(
        "--scrape-interval", default=d.scrape_interval, help=f"Prometheus's (default {d.scrape_interval})"
    )
    p.add_argument(
        "--gateway",
        choices=GATEWAYS,
        default=os.environ.get("GATEWAY", GATEWAYS[0]),
        help=f"envoy: Envoy Gateway too, beside Traefik (default: the variable GATEWAY, else {GATEWAYS[0]})",
    )
    p.add_argument("--no-images", action="store_true", help="build and load no images but pause")
    p.add_argument(
        "--steps", type=Path, metavar="FILE", help="write the seconds of each step to FILE, as JSON"
    )
    p.set_defaults(run=up)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m sandbox", description=__import__("sandbox").__doc__)
    sub = p.add_subparsers(required=True, metavar="COMMAND")
    _add_up(sub)
    s = sub.add_parser("down", help="end it and remove all it made, except packages and the cache")
    s.add_argument(
        "--id", help="another checkout's sandbox, as `list` names it (for a checkout that is gone)"
    )
    s.set_defaults(run=down)
    sub.add_parser("list", help="every sandbox of this machine").set_defaults(run=list_all)
    s = sub.add_parser("status", help="what runs, where, how it is")
    s.add_argument("--json", action="store_true", help="everything a program needs")
    s.set_defaults(run=status)
    s = sub.add_parser("exec", help="run a command with KUBECONFIG set; --inside: in the sandbox's network")
    s.add_argument("--inside", action="store_true", help="in the sandbox's network namespace")
    s.add_argument(
        "--node", choices=NODES, help="in a node's mount and network namespaces, with CONTAINERD_ADDRESS set"
    )
    s.add_argument("command", nargs=argparse.REMAINDER)
    s.set_defaults(run=execute)
    sub.add_parser("kubeconfig", help="print its path").set_defaults(run=kubeconfig)
    s = sub.add_parser("logs", help="a part's log")
    s.add_argument("part", choices=[*PARTS, "supervisor", "audit"])
    s.add_argument("-f", "--follow", action="store_true")
    s.add_argument("-n", "--lines", type=int, default=40)
    s.set_defaults(run=logs)
    for name, function, words in (
        ("start", start, "start a part"),
        ("stop", stop, "stop a part"),
        ("restart", restart, "stop, start, wait"),
    ):
        s = sub.add_parser(name, help=words)
        s.add_argument("part", choices=PARTS)
        if name != "start":
            s.add_argument("--kill", action="store_true", help="SIGKILL instead of SIGTERM")
        if name != "stop":
            s.add_argument("--no-wait", action="store_true", help="do not wait until it works again")
        s.set_defaults(run=function)
    s = sub.add_parser("signal", help="send a part a signal, for example STOP and CONT")
    s.add_argument("part", choices=PARTS)
    s.add_argument("signal")
    s.set_defaults(run=send_signal)
    s = sub.add_parser("load-images", help="build and load the images that changed")
    s.add_argument(
        "--flavour",
        action="append",
        default=[],
        choices=build_images.FLAVOURS,
        help="this flavour of the optimizer too, from now on (may be repeated)",
    )
    s.set_defaults(run=load_images)
    s = sub.add_parser("load-own-image", help="build FOLDER/Dockerfile, load it, print its name by digest")
    s.add_argument("name", help="localhost/NAME:dev is what it is called")
    s.add_argument(
        "folder", type=Path, help="the build's context; its Dockerfile gets the sandbox's base image as BASE"
    )
    s.add_argument("--target", help="this stage of the Dockerfile (default: the last)")
    s.set_defaults(run=load_own_image)
    return p


def up(a: argparse.Namespace) -> int:
    options = Options(a.gpus, a.gpu_product, a.scrape_interval)
    if a.gateway not in GATEWAYS:  # argparse does not check a default
        raise SandboxError(f"GATEWAY is {a.gateway!r}: set it to one of {', '.join(GATEWAYS)}, or unset it")
    began = time.monotonic()
    progress = Progress(err)
    try:
        with progress:
            status = Sandbox().up(
                progress, options, with_images=not a.no_images, with_envoy=a.gateway == "envoy"
            )
    finally:
        if a.steps:
            steps = [{"name": step.name, "seconds": round(step.seconds, 1)} for step in progress.steps]
            a.steps.write_text(json.dumps(steps))
    err.print(progress.table())
    err.print(f"up in {time.monotonic() - began:.1f} s")
    _print_status(status)
    return 0


def down(a: argparse.Namespace) -> int:
    began = time.monotonic()
    if a.id and a.id not in slots.assigned_numbers():
        raise SandboxError(f"no sandbox {a.id}: see `python -m sandbox list`")
    Sandbox(State(state_root() / a.id) if a.id else None).down()
    err.print(f"down in {time.monotonic() - began:.1f} s")
    return 0


def list_all(_: argparse.Namespace) -> int:
    for name, number in sorted(slots.assigned_numbers().items()):
        record = Record.read(State(state_root() / name))
        out.print(
            f"{name}  slot {number}  {'running' if record and record.alive else 'not running'} "
            f" {record.checkout if record else '?'}"
        )
    return 0


def status(a: argparse.Namespace) -> int:
    status = Sandbox().status()
    if a.json:
        sys.stdout.write(json.dumps(status, indent=1) + "\n")
    else:
        _print_status(status)
    return 0 if status["running"] and status["healthy"] else 1


def _print_status(status: dict[str, Any]) -> None:
    if not status["running"]:
        out.print("no sandbox runs for this checkout: python -m sandbox up")
        return
    t = Table(box=None, show_header=False, pad_edge=False)
    t.add_column(style="dim")
    t.add_column(overflow="fold")
    for name, value in (
        ("kubeconfig", status["kubeconfig"]),
        ("API server", status["apiserver"]),
        ("gateway", f"http://{status['gateway']['address']}  (in pods: {status['gateway']['in_cluster']})"),
        *((("Envoy", f"http://{status['envoy']['address']}"),) if status["envoy"] else ()),
        ("Prometheus", f"{status['prometheus']['url']}  (in pods: {status['prometheus']['in_cluster']})"),
        (
            "object store",
            f"{status['objectstore']['endpoint']}  (in pods: {status['objectstore']['endpoint_in_cluster']})",
        ),
        ("its keys", status["objectstore"]["keys_file"]),
        ("logs", status["logs"]),
    ):
        t.add_row(name, value)
    for n in status["nodes"]:
        t.add_row(
            "node",
            f"{n['name']}: {'Ready' if n['ready'] else 'NOT READY'}, {n['gpus']} GPUs {n['product'] or ''}",
        )
    out.print(t)
    bad = [f"{k}: {v}" for k, v in status["health"].items() if v != "ok"]
    dead = [n for n, p in status["parts"].items() if not p["running"]]
    out.print("[green]healthy[/]" if not bad else "[red]not healthy[/]: " + escape("; ".join(bad)))
    if dead:
        out.print(f"[yellow]stopped[/]: {', '.join(dead)}")


def execute(a: argparse.Namespace) -> int:
    box = Sandbox()
    record, c = box.running()
    command = a.command[1:] if a.command[:1] == ["--"] else a.command
    command = command or [os.environ.get("SHELL", "/bin/sh")]
    tools = [str(build_parts.binary("helm").parent), str(packages.kubectl().parent)]
    store = box.objectstore(c)
    env = {
        **os.environ,
        "KUBECONFIG": str(box.state.kubeconfig),
        "PATH": ":".join([os.environ["PATH"], *tools]),
        "AWS_ACCESS_KEY_ID": store["access_key"],
        "AWS_SECRET_ACCESS_KEY": store["secret_key"],
        "AWS_ENDPOINT_URL": store["endpoint"],
        "AWS_REGION": store["region"],
    }
    prefix: list[str] = []
    if a.node:
        holder = _in_host(record.pid, control.ask(box.state, op="status")["nodes"][a.node])
        env["CONTAINERD_ADDRESS"], env["CONTAINERD_NAMESPACE"] = str(box.state.containerd(a.node)), "k8s.io"
        prefix = ["nsenter", "--target", str(holder), "--mount", "--net", "--pid", "--"]
    elif a.inside:
        prefix = ["nsenter", "--target", str(record.pid), "--net", "--"]
    return subprocess.run([*prefix, *command], env=env).returncode


def _in_host(init: int, inner: int) -> int:
    """This machine's number of a process that the sandbox's init numbers `inner`."""
    space = Path(f"/proc/{init}/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns/pid").readlink() == space:
                    line = next(
                        x for x in (entry / "status").read_text().splitlines() if x.startswith("NSpid:")
                    )
                    if int(line.split()[-1]) == inner:
                        return int(entry.name)
            except (OSError, StopIteration):
                continue
    raise SandboxError(f"process {inner} of the sandbox is gone")


def kubeconfig(_: argparse.Namespace) -> int:
    box = Sandbox()
    box.running()
    sys.stdout.write(f"{box.state.kubeconfig}\n")
    return 0


def logs(a: argparse.Namespace) -> int:
    path = Sandbox().state.logs / f"{a.part}.log"
    if not path.exists():
        raise SandboxError(f"no log at {path}")
    if a.follow:
        return subprocess.run(
            [shutil.which("tail") or "tail", "-n", str(a.lines), "-F", str(path)]
        ).returncode
    sys.stdout.write(tail(path, a.lines) + "\n")
    return 0


def start(a: argparse.Namespace) -> int:
    box = Sandbox()
    _, c = box.running()
    control.start(box.state, a.part)
    if not a.no_wait:
        box.wait_part(c, a.part)
    return 0


def stop(a: argparse.Namespace) -> int:
    box = Sandbox()
    box.running()
    control.stop(box.state, a.part, signal.SIGKILL if a.kill else signal.SIGTERM)
    return 0


def restart(a: argparse.Namespace) -> int:
    stop(a)
    return start(a)


def send_signal(a: argparse.Namespace) -> int:
    box = Sandbox()
    box.running()
    number = (
        int(a.signal) if a.signal.isdigit() else signal.Signals[f"SIG{a.signal.upper().removeprefix('SIG')}"]
    )
    control.ask(box.state, op="signal", part=a.part, signal=int(number))
    return 0


def load_images(a: argparse.Namespace) -> int:
    with Progress(err) as progress:
        Sandbox().load_images(progress, a.flavour)
    err.print(progress.table())
    return 0


def load_own_image(a: argparse.Namespace) -> int:
    with Progress(err) as progress:
        name = Sandbox().load_own_image(progress, a.name, a.folder.resolve(), a.target)
    sys.stdout.write(f"{name}\n")
    return 0


def main() -> int:
    a = parser().parse_args()
    function: Callable[[argparse.Namespace], int] = a.run
    try:
        return function(a)
    except StepError as error:
        err.print(f"\n[bold red]failed[/]: {escape(str(error))}")
        if error.excerpt:
            err.print(escape(error.excerpt), style="dim")
        if error.log:
            err.print(f"log: {error.log}")
        err.print(
            "what to do: read the log; then `python -m sandbox up` tries again, `python -m sandbox down`"
            " cleans up"
        )
        return 1
    except (SandboxError, control.ControlError, WaitError, CommandError) as error:
        err.print(f"[bold red]failed[/]: {escape(str(error))}")
        if isinstance(error, CommandError) and error.output:
            err.print(escape(error.output[-2000:]), style="dim")
        return 1
    except KeyboardInterrupt:
        err.print(f"interrupted; `python -m sandbox down` cleans up (the cache at {cache_root()} stays)")
        return 130


if __name__ == "__main__":
    sys.exit(main())
