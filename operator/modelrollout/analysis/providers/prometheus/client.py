"""A client of Prometheus: prometheus-api-client, which is synchronous, on a bounded pool of
threads.

Every failure has its own reason. No message holds a credential: texts of exceptions may hold the
URL, and are not passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from modelrollout import nesting
from modelrollout.analysis.problem import MeasurementProblem, MeasurementReason
from modelrollout.analysis.providers.prometheus import namespace_queries
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.scrape_rights import Scrape, ScrapeTarget
from modelrollout.config import PrometheusConfig
from modelrollout.reasons import Reason

# a user's query may match everything, and must not exhaust the operator's memory
MAX_ANSWER_BYTES = 2 << 20
MAX_TARGETS_BYTES = 16 << 20  # some 5,000 targets, or the configuration
MAX_SERIES = 10_000
HISTORY_POINTS = 300  # of a range query at once: an answer stays far below MAX_ANSWER_BYTES
OWN_MORE_SECONDS = 0.5  # for Prometheus to report that it ended an own query at its limit
# of the time-out, for the connection: distinguishes a missing server from a slow query
CONNECT_SHARE = 0.5
_BROKEN = "connection broken"
_STATUS = re.compile(r"HTTP Status Code (\d+)")
_JOB = re.compile(r"- job_name: (?:\"(.*)\"|'(.*)'|(.*))")
_HONORS = "  honor_labels: true"
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")


class _Credentials(NamedTuple):
    token: str | None
    username: str | None
    password: str | None
    headers: tuple[tuple[str, str], ...]
    ca: str | None


class _UnusableError(Exception):
    """What a file holds cannot be used; the message names the file and shows nothing of it."""


class _TooLargeError(Exception):
    """The message says what to do."""


class PrometheusReader:
    """Runs queries on one Prometheus; shared by all ModelDeployments."""

    def __init__(
        self,
        provider: PrometheusConfig,
        *,
        threads: int = 4,
        patience: float = namespace_queries.PATIENCE_SECONDS,
    ) -> None:
        """``patience``: seconds that a reading waits for a namespace's own queries."""
        self._provider = provider
        self._own = namespace_queries.OwnQueries(provider.name, self._own_now, patience=patience)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"prometheus-{provider.name}")
        self._lock = threading.Lock()
        self._client: tuple[_Credentials, PrometheusConnect] | None = None
        # no connection, and until when (the loop's time) no query tries another
        self._outage: tuple[MeasurementProblem, float] | None = None

    async def query(self, queries: Sequence[str]) -> list[Answer | MeasurementProblem]:
        """The answers in the order of the queries, which run concurrently. Never raises for what
        Prometheus does, and takes ``timeout_seconds`` at most.

        After a failed connection no query tries another for as long again: many rollouts would hold
        all workers of the queue in turn. A slow query is not remembered: it is its author's alone.
        """
        loop = asyncio.get_running_loop()
        if self._outage is not None and loop.time() < self._outage[1]:
            return [self._outage[0] for _ in queries]
        answers = list(await asyncio.gather(*(self._query(q) for q in queries)))
        outage = next(
            (
                a
                for a in answers
                if isinstance(a, MeasurementProblem) and a.reason == Reason.PROVIDER_UNREACHABLE
            ),
            None,
        )
        self._outage = (outage, loop.time() + self._provider.timeout_seconds) if outage else None
        return answers

    async def query_own(
        self, namespace: str, queries: Mapping[str, str]
    ) -> dict[str, Answer | MeasurementProblem]:
        """Run a namespace's own queries, each under its key, apart from all others
        (``OwnQueries``).
        """
        if self._outage is not None and asyncio.get_running_loop().time() < self._outage[1]:
            return dict.fromkeys(queries, self._outage[0])
        return await self._own.query(namespace, queries)

    async def close(self) -> None:
        """Release the threads; a query that hangs ends by its own time-out."""
        self._own.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._client:
            self._client[1]._session.close()

    async def _query(self, query: str) -> Answer | MeasurementProblem:
        loop = asyncio.get_running_loop()
        try:
            # The limit includes the wait for a thread: a Prometheus that hangs delays only its own
            # queries.
            async with asyncio.timeout(self._provider.timeout_seconds):
                return await loop.run_in_executor(self._pool, self._query_now, query)
        except TimeoutError:
            return self._problem(
                Reason.PROVIDER_TIMEOUT, f"did not answer within {self._provider.timeout_seconds:g} s"
            )

    async def history(self, query: str, times: Sequence[int]) -> dict[int, Answer] | MeasurementProblem:
        """The query's answer at each time: evenly spaced Unix seconds, growing. Each request has
        the provider's time-out.
        """
        answers_by_time: dict[int, Answer] = {}
        if self._outage is not None and asyncio.get_running_loop().time() < self._outage[1]:
            return self._outage[0]
        step = times[1] - times[0] if len(times) > 1 else 1
        for start in range(0, len(times), HISTORY_POINTS):
            part = times[start : start + HISTORY_POINTS]
            try:
                async with asyncio.timeout(self._provider.timeout_seconds):
                    answers = await asyncio.get_running_loop().run_in_executor(
                        self._pool, self._history_now, query, part, step
                    )
            except TimeoutError:
                return self._problem(
                    Reason.PROVIDER_TIMEOUT, f"did not answer within {self._provider.timeout_seconds:g} s"
                )
            if isinstance(answers, MeasurementProblem):
                return answers
            answers_by_time |= answers
        return answers_by_time

    async def scrape(self) -> Scrape | MeasurementProblem:
        """The targets, and the jobs whose targets may overwrite labels of the scrape."""
        try:
            async with asyncio.timeout(2 * self._provider.timeout_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._scrape_now)
        except TimeoutError:
            return self._problem(
                Reason.PROVIDER_TIMEOUT, f"did not answer within {2 * self._provider.timeout_seconds:g} s"
            )

    def _scrape_now(self) -> Scrape | MeasurementProblem:
        result = self._call(
            lambda client: (client.get_targets(state="active")["activeTargets"], _configuration(client))
        )
        if isinstance(result, MeasurementProblem):
            return result
        active, configuration = result
        try:
            targets = tuple(
                ScrapeTarget(str(t["scrapePool"]), dict(t["labels"]), dict(t["discoveredLabels"]))
                for t in active
            )
        except (KeyError, TypeError, ValueError):
            return self._problem(Reason.BAD_ANSWER, "lists its targets in a form of its own")
        return Scrape(
            targets, frozenset({t.pool for t in targets} - jobs_without_honor_labels(configuration))
        )

    def _history_now(
        self, query: str, times: Sequence[int], step: int
    ) -> dict[int, Answer] | MeasurementProblem:
        def send(client: PrometheusConnect) -> Any:
            return client.custom_query_range(
                query,
                datetime.fromtimestamp(times[0], UTC),
                datetime.fromtimestamp(times[-1], UTC),
                f"{step}s",
            )

        result = self._call(send)
        if isinstance(result, MeasurementProblem):
            return result
        at: dict[int, list[Series]] = {t: [] for t in times}
        try:
            for row in result:
                for t, value in row["values"]:
                    at[round(float(t))].append(Series(row["metric"], float(value), float(t)))
        except (KeyError, TypeError, ValueError):
            return self._problem(Reason.BAD_ANSWER, "answers a range query with something else than a matrix")
        return {t: Answer(tuple(series)) for t, series in at.items()}

    def _query_now(self, query: str) -> Answer | MeasurementProblem:
        result = self._call(
            lambda client: client.custom_query(
                query, params={"timeout": f"{self._provider.timeout_seconds:g}s"}
            )
        )
        return result if isinstance(result, MeasurementProblem) else self._read(result)

    def _own_now(self, query: str) -> Answer | MeasurementProblem:
        """Prometheus should end the query first. A broken connection is blamed on the query: the
        server may have died of it.
        """
        limit = min(namespace_queries.LIMIT_SECONDS, self._provider.timeout_seconds)
        # annotated as int by the library, which passes a pair on
        timeouts: Any = (CONNECT_SHARE * limit, limit + OWN_MORE_SECONDS)
        result = self._call(
            lambda client: client.custom_query(query, params={"timeout": f"{limit:g}s"}, timeout=timeouts)
        )
        if isinstance(result, MeasurementProblem):
            broken = result.reason == Reason.PROVIDER_UNREACHABLE and result.message.endswith(_BROKEN)
            return (
                self._problem(Reason.PROVIDER_ERROR, f"broke off while it answered: {_BROKEN}")
                if broken
                else result
            )
        return self._read(result)

    def _call(self, send: Callable[[PrometheusConnect], Any]) -> Any:
        """The library's answer, or the problem that it ran into."""
        try:
            credentials = self._credentials()
        except OSError as e:
            return self._problem(
                Reason.PROVIDER_DENIED,
                f"cannot be asked: its credentials in {e.filename} cannot be read ({e.strerror})",
            )
        except _UnusableError as e:
            return self._problem(Reason.PROVIDER_DENIED, f"cannot be asked: {e}")
        try:
            return send(self._connect(credentials))
        except requests.exceptions.ConnectTimeout:
            return self._problem(
                Reason.PROVIDER_UNREACHABLE, f"cannot be reached at {self._host()}: no answer to a connection"
            )
        except requests.exceptions.Timeout:
            return self._problem(
                Reason.PROVIDER_TIMEOUT, f"did not answer within {self._provider.timeout_seconds:g} s"
            )
        except PrometheusApiClientException as e:
            return self._http_problem(str(e))
        except _TooLargeError as e:
            return self._problem(Reason.QUERY_REJECTED, str(e))
        except requests.exceptions.JSONDecodeError:
            return self._not_prometheus()
        except requests.exceptions.RequestException as e:
            if "ReadTimeoutError" in repr(e):  # while the body was read
                return self._problem(
                    Reason.PROVIDER_TIMEOUT, f"did not answer within {self._provider.timeout_seconds:g} s"
                )
            return self._problem(
                Reason.PROVIDER_UNREACHABLE, f"cannot be reached at {self._host()}: {_cause(e)}"
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._not_prometheus()

    def _read(self, result: Any) -> Answer | MeasurementProblem:
        """An instant vector, or a scalar as one series without labels."""
        try:
            if isinstance(result, list) and len(result) == 2 and not isinstance(result[0], dict):
                return Answer((Series({}, float(result[1]), float(result[0])),))
            if len(result) > MAX_SERIES:
                return self._problem(
                    Reason.QUERY_REJECTED, f"answers with {len(result)} series: aggregate the query to one"
                )
            return Answer(
                tuple(Series(r["metric"], float(r["value"][1]), float(r["value"][0])) for r in result)
            )
        except (KeyError, IndexError, TypeError, ValueError):
            return self._problem(
                Reason.BAD_ANSWER,
                "answers with something else than an instant vector or a number: leave range selectors out of"
                " the query",
            )

    def _http_problem(self, text: str) -> MeasurementProblem:
        match = _STATUS.search(text)
        status = int(match[1]) if match else 0
        if status in (401, 403):
            return self._problem(
                Reason.PROVIDER_DENIED,
                f"refuses the operator's credentials (HTTP {status}): it was sent {self._sent()}; give what"
                " it wants in tokenSecret, basicAuthSecret or headerSecrets of the chart's prometheus",
            )
        if status in (400, 422):
            return self._problem(
                Reason.QUERY_REJECTED, f"rejects the query (HTTP {status}){_error_text(text)}"
            )
        if status == 404:
            return self._problem(
                Reason.BAD_ANSWER,
                f"has no query API at {self._host()} (HTTP 404): check the URL and its path",
            )
        if status == 503 and "timed out" in _error_text(text):
            return self._problem(Reason.PROVIDER_TIMEOUT, f"ended the query itself{_error_text(text)}")
        return self._problem(Reason.PROVIDER_ERROR, f"fails (HTTP {status})")

    def _not_prometheus(self) -> MeasurementProblem:
        return self._problem(
            Reason.BAD_ANSWER,
            "does not answer in its own format: is the URL that of a Prometheus, or of a page before it?",
        )

    def _sent(self) -> str:
        """The names of the headers that say who asks."""
        p = self._provider
        by_token = ["Authorization"] if p.token_file or p.username_file else []
        return " and ".join([*by_token, *p.header_files]) or "no header that says who asks"

    def _credentials(self) -> _Credentials:
        """From the files as they are now: a mounted Secret may change. Raises OSError and
        _UnusableError.
        """
        p = self._provider
        token = _header_value("Authorization", p.token_file) if p.token_file else None
        username, password = (_line(f) if f else None for f in (p.username_file, p.password_file))
        headers = tuple((name, _header_value(name, file)) for name, file in p.header_files.items())
        return _Credentials(
            token, username, password, headers, _certificates(p.ca_file) if p.ca_file is not None else None
        )

    def _connect(self, credentials: _Credentials) -> PrometheusConnect:
        with self._lock:
            if self._client is None or self._client[0] != credentials:
                self._client = (credentials, self._new(credentials))
            return self._client[1]

    def _new(self, credentials: _Credentials) -> PrometheusConnect:
        session = requests.Session()
        # The proxy and the authorities of the environment, read once: requests would do so for each
        # query, which is a third of its cost.
        environment = session.merge_environment_settings(self._provider.url, {}, None, None, None)
        session.proxies, session.verify = environment["proxies"], environment["verify"]
        session.trust_env = False
        session.stream = True  # so that _bounded reads the body, not the library
        session.hooks["response"].append(_bounded(self._provider.timeout_seconds))
        if credentials.ca is not None:
            session.verify = self._provider.ca_file
        headers = dict(credentials.headers)
        if credentials.token:
            headers["Authorization"] = f"Bearer {credentials.token}"
        auth = (
            (credentials.username, credentials.password or "")
            if credentials.username and not credentials.token
            else None
        )
        return PrometheusConnect(
            url=self._provider.url.rstrip("/"),
            headers=headers or None,
            auth=auth,
            session=session,
            timeout=(CONNECT_SHARE * self._provider.timeout_seconds, self._provider.timeout_seconds),
            retry=Retry(0),  # the next reading retries
        )

    def _host(self) -> str:
        parts = urlsplit(self._provider.url)
        return parts.hostname or "its address" if parts.port is None else f"{parts.hostname}:{parts.port}"

    def _problem(self, reason: MeasurementReason, what: str) -> MeasurementProblem:
        return MeasurementProblem(reason, f"Prometheus {self._provider.name} {what}")


def _line(file: str) -> str:
    """Raises OSError and _UnusableError."""
    # as requests sends it, in latin-1
    with contextlib.suppress(UnicodeError):
        text = Path(file).read_bytes().decode().strip()
        text.encode("latin-1")
        if not re.search(r"[\x00-\x1f\x7f]", text):
            return text
    raise _UnusableError(
        f"{file} has more than one line, or characters that cannot be sent; correct it in the Secret"
    )


def _header_value(name: str, file: str) -> str:
    """Raises OSError and _UnusableError."""
    value = Path(file).read_bytes().decode("latin-1").strip()
    if not _HEADER_VALUE.fullmatch(value):
        raise _UnusableError(
            f"the value of the header {name} in {file} is empty, or has characters that no header may have;"
            " correct it in the Secret"
        )
    return value


def _certificates(file: str) -> str:
    """The text of a file with certificates; raises OSError and _UnusableError."""
    text = Path(file).read_bytes().decode("latin-1")
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        raise _UnusableError(
            f"{file} has no certificates in the form PEM; correct it in the Secret or ConfigMap"
        ) from None
    return text


def _configuration(client: PrometheusConnect) -> str:
    """The configuration that is loaded, which Prometheus shows without its secrets."""
    url, limits = (
        f"{client.url}/api/v1/status/config",
        {"timeout": client._timeout, "headers": client.headers, "auth": client.auth},
    )
    response = client._session.get(url, **limits)
    if response.status_code != 200:
        raise PrometheusApiClientException(f"HTTP Status Code {response.status_code}")
    return str(response.json()["data"]["yaml"])


def jobs_without_honor_labels(configuration: str) -> frozenset[str]:
    """Jobs whose targets cannot overwrite labels of the scrape.

    Reads the lines as Prometheus writes them: parsing the YAML of a large cluster takes a minute.
    """
    obeys_by_job: dict[str, bool] = {}
    job = None
    for line in configuration.splitlines():
        if match := _JOB.fullmatch(line):
            job = match[match.lastindex or 0]
            obeys_by_job[job] = True
        elif line == _HONORS and job is not None:
            obeys_by_job[job] = False
    return frozenset(name for name, obeys in obeys_by_job.items() if obeys)


def _bounded(limit_seconds: float) -> Any:
    """A response hook that reads the body within limits of bytes and of time: requests' own
    time-out is for each read.
    """

    def read(response: requests.Response, **_: object) -> None:
        deadline, body = time.monotonic() + limit_seconds, bytearray()
        queried = "/api/v1/query" in response.url
        most = MAX_ANSWER_BYTES if queried else MAX_TARGETS_BYTES
        for chunk in response.iter_content(64 << 10):
            body += chunk
            if len(body) > most:
                response.close()
                raise _TooLargeError(
                    f"answers with more than {most >> 20}"
                    f" MiB{': aggregate the query to one series' if queried else ''}"
                )
            if time.monotonic() > deadline:
                response.close()
                raise requests.exceptions.ReadTimeout
        response._content = bytes(body)

    return read


def _cause(error: requests.exceptions.RequestException) -> str:
    """The kind of failure, in fixed words."""
    text = repr(error)
    known = {
        "NameResolutionError": "its host name is not known",
        "refused": "connection refused",
        "CERTIFICATE_VERIFY_FAILED": (
            "its certificate is not trusted; give the certificate of its authority in caSecret or caConfigMap"
            " of the chart's prometheus"
        ),
        "SSLError": "TLS failed",
        "ProxyError": "the proxy failed",
        "MissingSchema": "the URL lacks http:// or https://",
        "InvalidURL": "the URL is not valid",
    }
    return next((words for sign, words in known.items() if sign in text), _BROKEN)


def _error_text(text: str) -> str:
    """Prometheus's own message about a bad query, which quotes the query only."""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
        body = re.search(r"\(b(['\"])(.*)\1\)", text, re.S)
        error = nesting.parse(body[2].encode().decode("unicode_escape"))["error"] if body else None
        if isinstance(error, str):
            return f": {error[:300]}"
    return ""
