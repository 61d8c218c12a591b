"""The pages of the processor of this process, as their readers take them."""

from __future__ import annotations

import json
from typing import Any
from wsgiref.util import setup_testing_defaults

from prometheus_client.parser import text_string_to_metric_families

from processor.web import pages

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def page(path: str) -> tuple[int, bytes]:
    """Return status and body of a page."""
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = path
    head: list[Any] = []
    body = b"".join(pages.application(environ, lambda *args: head.extend(args)))  # type: ignore[arg-type]
    return int(head[0].split()[0]), body


def health() -> dict[str, Any]:
    """Return the content of /health."""
    return dict(json.loads(page("/health")[1]))


def scrape() -> Series:
    """Return all samples of /metrics by name without prefix, and labels."""
    code, body = page("/metrics")
    assert code == 200
    return {
        (sample.name.removeprefix("processor_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> float | None:
    """Return one sample of /metrics, None if there is none."""
    return scrape().get((name, frozenset(labels.items())))


def names() -> set[str]:
    """Return the names of all samples."""
    return {name for name, _ in scrape()}
