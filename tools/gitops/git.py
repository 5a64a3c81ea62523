"""The Git repository of the story, and a server of it: smart HTTP on loopback, as a Git host."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gitops import GitopsError

BRANCH = "main"
_ISOLATED = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "team",
    "GIT_AUTHOR_EMAIL": "team@models.example",
    "GIT_COMMITTER_NAME": "team",
    "GIT_COMMITTER_EMAIL": "team@models.example",
    "PATH": "/usr/bin:/bin",
}


class Repository:
    """A bare repository and a clone of it in which a team works. ``folder`` is empty or not there
    yet.
    """

    def __init__(self, folder: Path) -> None:
        self.bare, self._work = folder / "models.git", folder / "work"
        self.bare.mkdir(parents=True)
        self._run(self.bare, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}")
        self._run(folder, "clone", "--quiet", str(self.bare), str(self._work))

    def commit(self, message: str, files: Mapping[str, str]) -> str:
        """Write these files (path -> text), commit and push; the commit's hash. Other files of the
        folders that they are in are removed.
        """
        for folder in {Path(path).parent for path in files}:
            for old in (self._work / folder).glob("*.yaml"):
                old.unlink()
        for path, text in files.items():
            target = self._work / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        self._run(self._work, "add", "--all")
        self._run(self._work, "commit", "--quiet", "--message", message)
        return self._push()

    def revert(self) -> str:
        """`git revert` of the last commit, pushed; its hash."""
        self._run(self._work, "revert", "--no-edit", "HEAD")
        return self._push()

    def _push(self) -> str:
        self._run(self._work, "push", "--quiet", "origin", f"HEAD:{BRANCH}")
        return self._run(self._work, "rev-parse", "HEAD")

    def _run(self, folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=_ISOLATED, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise GitopsError(f"git {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()


class GitServer:
    """A context manager: serves the bare repositories of a folder by ``git http-backend``, to read
    only.
    """

    def __init__(self, folder: Path) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder))
        self._server.daemon_threads = True

    def __enter__(self) -> GitServer:
        threading.Thread(target=self._server.serve_forever, name="git-server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, repository: Path) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{repository.name}"


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """CGI as gitprotocol-http and git-http-backend have it."""

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _answer(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            environment = _ISOLATED | {
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "REMOTE_ADDR": self.client_address[0],
            }
            done = subprocess.run(
                ["git", "http-backend"], input=body, env=environment, capture_output=True, check=False
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = [line.split(": ", 1) for line in head.decode().splitlines() if ": " in line]
            status = next((value for name, value in fields if name == "Status"), "200" if fields else "500")
            self.send_response(int(status.split()[0]))
            for name, value in fields:
                if name != "Status":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """One line a request would bury the story."""

    return Handler
