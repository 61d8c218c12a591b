"""The counters and gauges of this process in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from processor.telemetry import metrics

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def exposition(status: str) -> tuple[str, bytes]:
    """The content type and the body of /metrics; `status` is that of the processor."""
    # Imported late: this takes 50 ms, which a host that never serves metrics should not pay.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


def printable(label: str) -> str:
    """Return a label with everything else than printable characters escaped.

    Names of lanes and replicas come from Redis; prometheus_client only escapes quotes, backslashes
    and newlines.
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in label)


class _Collector:
    """Hands `metrics` and the status to prometheus_client."""

    def __init__(self, status: str) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        families: dict[str, Any] = {}
        for name, labels, value in metrics.snapshot():
            kind, meaning = metrics.DECLARED[name]
            if name not in families:
                families[name] = kinds[kind](f"processor_{name}", meaning, labels=dict(labels))
            families[name].add_metric([printable(content) for _, content in labels], value)
        yield from families.values()
        family = GaugeMetricFamily(
            "processor_status", "status of the processor: 1 for the current one", labels=["status"]
        )
        family.add_metric([self._status], 1)
        yield family
