"""Health and metrics over HTTP.

gauges      the gauges of a processor, read from its state
prometheus  counters and gauges in the text format of Prometheus
pages       /health, /health/live, /health/ready and /metrics: the WSGI callable `application`
server      serves the pages on `health.bind` with waitress
"""

from processor.web.pages import application

__all__ = ["application"]
