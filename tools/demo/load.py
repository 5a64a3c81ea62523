"""The client's process, as the driver sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import DemoError
from demo.client import SUMMARY, Settings

TOKEN_SECONDS = 3600
RENEW_SECONDS = 1200.0


class ClientEndedError(DemoError):
    """The client is gone, and with it the proof that no request fails."""


class Load:
    """Starts the client, keeps its token fresh, reads its counts, stops it."""

    def __init__(self, settings: Settings, token: Callable[[], str] | None) -> None:
        self._settings = settings
        self._folder = Path(settings.folder)
        self._token = token
        self._renewed = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it and wait for its first counts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / SUMMARY).unlink(missing_ok=True)
        self._renew()
        path = self._folder / "client-settings.json"
        self._settings.save(path)
        with (self._folder / "client.log").open("w") as log:
            # A session of its own: Ctrl-C at the terminal must not cut off requests in flight.
            command = [sys.executable, "-m", "demo.client", str(path)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 30
        while self.counts() is None:
            if time.monotonic() > deadline:
                raise ClientEndedError(
                    f"the client has not begun within 30 s; see {self._folder / 'client.log'}"
                )
            time.sleep(0.1)

    def counts(self) -> dict[str, Any] | None:
        """The latest counts; None before the first. Raises DemoError when the client has died."""
        if self._process and self._process.poll() is not None:
            raise ClientEndedError(
                f"the client has ended with exit code {self._process.returncode}; see"
                f" {self._folder / 'client.log'}"
            )
        self._renew()
        return self._read()

    def stop(self) -> dict[str, Any]:
        """Stop it, wait for what is in flight, and return the final counts."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._settings.deadline + 20)
            except subprocess.TimeoutExpired as e:
                self._process.kill()
                raise ClientEndedError("the client did not stop") from e
        self._process = None
        if self._settings.feedback_token:
            Path(self._settings.feedback_token).unlink(missing_ok=True)
        counts = self._read()
        if counts is None or not counts["done"]:
            raise ClientEndedError(
                f"the client ended without its last counts; see {self._folder / 'client.log'}"
            )
        return counts

    def _read(self) -> dict[str, Any] | None:
        try:
            summary: dict[str, Any] = json.loads((self._folder / SUMMARY).read_text())
        except FileNotFoundError:
            return None
        return summary

    def _renew(self) -> None:
        if (
            self._token
            and self._settings.feedback_token
            and (self._renewed == 0 or time.monotonic() - self._renewed > RENEW_SECONDS)
        ):
            path = Path(self._settings.feedback_token)
            path.touch(mode=0o600)
            path.write_text(self._token())
            self._renewed = time.monotonic()
