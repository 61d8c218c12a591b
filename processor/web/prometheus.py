"""The counters and gauges of this process in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from processor.telemetry import metrics
from processor.telemetry.status import State
from processor.web.gauges import gauges

if TYPE_CHECKING:
    from prometheus_client.core import Metric


def exposition(state: State) -> tuple[str, bytes]:
    """The content type and the body of /metrics."""
    # Imported late: this takes 50 ms, which a host that never serves metrics should not pay.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(state))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


def printable(label: str) -> str:
    """Return a label with everything else than printable characters escaped.

    Names of lanes and replicas come from Redis; prometheus_client only escapes quotes, backslashes
    and newlines.
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in label)


class _Collector:
    """Hands counters and gauges to prometheus_client."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        families: dict[str, Any] = {}
        for name, labels, value in (*metrics.snapshot(), *gauges(self._state)):
            declared = metrics.DECLARED[name]
            if name not in families:
                families[name] = kinds[declared.kind](
                    f"processor_{name}", declared.meaning, labels=dict(labels)
                )
            families[name].add_metric([printable(content) for _, content in labels], value)
        yield from families.values()
