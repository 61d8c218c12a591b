"""Health and metrics over HTTP.

pages                The pages /health, /health/live, /health/ready and /metrics: one WSGI callabl
"""

from processor.web.pages import application

__all__ = ["application"]
