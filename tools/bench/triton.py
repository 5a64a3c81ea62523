"""The real Triton without a cluster: the sandbox's image, unpacked into the cache, in a mount
namespace of its own. Needs root, as that does.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from bench import baseline
from modelrollout.triton.repository import Repository
from sandbox import build_images
from sandbox.unpack_image import unpack

_START_SECONDS = 60.0
# Triton and its stubs share memory: /dev and /proc are the machine's. The namespace, and with it
# the mounts, ends with the server.
_ENTER = (
    'root=$0; mount --rbind /dev "$root/dev" && mount -t proc proc "$root/proc" && mount --rbind "$1"'
    ' "$root/models" && shift && exec env LD_LIBRARY_PATH=/opt/tritonserver/lib chroot "$root" "$@"'
)


class TritonMissing(RuntimeError):
    """There is no image to take it from, or it does not start."""


def unpacked() -> Path:
    """The root folder of the sandbox's Triton image, unpacked once; raises TritonMissing."""
    image = build_images.find(build_images.TRITON, build_images.triton_key())
    if image is None:
        raise TritonMissing(
            "the sandbox's Triton image is not built: run `python -m sandbox up` once (and `down` again)"
        )
    root = baseline.cache() / f"triton-{image.key}"
    if root.exists():
        return root
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        unpack(image, partial)
    except (OSError, tarfile.TarError, zstandard.ZstdError) as error:
        raise TritonMissing(f"the sandbox's Triton image cannot be unpacked: {error}") from error
    for folder in ("dev", "proc", "models"):
        (partial / folder).mkdir(exist_ok=True)
    partial.rename(root)
    return root


@dataclass(frozen=True)
class Server:
    """A Triton that runs: ``host:port``, the address of its metrics, and its process."""

    address: str
    metrics: str
    pid: int


@contextmanager
def serving(models: Path, port: int, flags: Sequence[str] = ()) -> Iterator[Server]:
    """A Triton that loads models on request from the folder ``models``; its metrics are at the port
    after ``port``. Raises TritonMissing.
    """
    command = [
        "tritonserver",
        "--model-repository=/models",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
    ]
    command += [
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        f"--metrics-port={port + 1}",
        "--metrics-address=127.0.0.1",
        "--exit-timeout-secs=5",
        *flags,
    ]
    environment = {
        "PATH": "/opt/tritonserver/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/tmp",
    }
    log = baseline.cache() / f"triton-{port}.log"
    with log.open("wb") as out:
        argv = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            _ENTER,
            str(unpacked()),
            str(models),
            *command,
        ]
        server = subprocess.Popen(argv, env=environment, stdout=out, stderr=subprocess.STDOUT)
    address = f"127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START_SECONDS
        with Repository(address) as repository:
            while not repository.is_live():
                if server.poll() is not None or time.monotonic() > end:
                    raise TritonMissing(f"Triton does not start: {log.read_text()[-500:]}")
                time.sleep(0.1)
        yield Server(address, f"http://127.0.0.1:{port + 1}/metrics", server.pid)
    finally:
        server.terminate()
        server.wait()
