"""What a gateway counts and times, in the form that Prometheus reads. Knows no HTTP."""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from .problems import status_of
from .scheduler import Job

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Seconds:
    """A histogram of seconds for each combination of labels. To be used in one thread.

    As the library's own, but that to add a time takes half a microsecond, and not four: a request adds three.

    Args:
        name: of the figure.
        text: what it says.
        labels: their names.
        registry: that has it.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._about = name, text, labels
        self._found: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        registry.register(self)

    def observe(self, labels: tuple[str, ...], seconds: float) -> None:
        """Add one."""
        found = self._found.get(labels)
        if found is None:
            found = self._found[labels] = [0] * (len(_SECONDS) + 1), [0.0]
        found[0][bisect_left(_SECONDS, seconds)] += 1
        found[1][0] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        family = HistogramMetricFamily(*self._about[:2], labels=self._about[2])
        bounds = [*map(floatToGoString, _SECONDS), "+Inf"]
        for labels, (counts, (total,)) in sorted(self._found.items()):
            family.add_metric(labels, list(zip(bounds, itertools.accumulate(counts), strict=True)), total)
        yield family


class Metrics:
    """The figures of one gateway; each has a registry of its own, so that several may be in one process.

    Args:
        status: how the scheduler is; asked whenever somebody reads the figures.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._registry = registry = CollectorRegistry()
        self._requests = _Seconds(
            "tr_http_request_duration_seconds",
            "Requests, by route and status.",
            ("method", "route", "status"),
            registry,
        )
        self._success = Counter("tr_success", "Runs that ended well, by kind.", ("kind",), registry=registry)
        self._success_of = functools.cache(self._success.labels)
        self._failure = Counter(
            "tr_failure", "Runs that did not, by kind and reason.", ("kind", "reason"), registry=registry
        )
        self._refused = Counter("tr_refused", "Requests that were refused, by reason.", ("reason",), registry=registry)
        self._unaudited = Counter("tr_audit_missed", "Lines that the audit log could not take.", registry=registry)
        self._queued = _Seconds("tr_queue_seconds", "From a run's arrival to its begin.", ("kind",), registry)
        self._computed = _Seconds("tr_compute_seconds", "From a run's begin to its end.", ("kind",), registry)
        self._waiting = Gauge("tr_task_queue_size", "Runs that wait, by kind.", ("kind",), registry=registry)
        self._running = Gauge("tr_running", "Runs that go on, by kind.", ("kind",), registry=registry)
        self._breakers = Gauge("tr_open_breakers", "Algorithms that are not run for a while.", registry=registry)
        ProcessCollector(registry=registry)
        self._layers = Gauge(
            "tr_sandbox_layer_active", "1 for each layer that is active.", ("layer",), registry=registry
        )

    def saw_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.observe((method, route, str(status)), seconds)

    def saw_refusal(self, reason: str) -> None:
        """A request was refused before a route saw it."""
        self._refused.labels(reason).inc()

    def missed_audit(self) -> None:
        """The audit log could not take a line."""
        self._unaudited.inc()

    def saw_run(self, job: Job, error: BaseException | None) -> None:
        """A run has ended, or was given up before its turn."""
        if error is None:
            self._success_of(job.kind).inc()
        else:
            reason = type(error).__name__ if status_of(error) != 500 else "InternalError"
            self._failure.labels(job.kind, reason).inc()
        if job.began_s:
            self._queued.observe((job.kind,), job.began_s - job.arrived_s)
            self._computed.observe((job.kind,), job.ended_s - job.began_s)

    def saw_layers(self, layers: frozenset[str]) -> None:
        """What the sandboxes have."""
        for layer in layers:
            self._layers.labels(layer).set(1)

    def text(self) -> bytes:
        """All of it."""
        status = self._status()
        self._breakers.set(len(status["open_breakers"]))
        for kind, lane in status["queues"].items():
            self._waiting.labels(kind).set(lane["waiting"])
            self._running.labels(kind).set(lane["running"])
        return generate_latest(self._registry)
