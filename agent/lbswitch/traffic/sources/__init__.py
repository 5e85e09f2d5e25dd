"""Metrics from elsewhere: Prometheus, JSON over HTTP, a command, PostgreSQL, this machine.

What only some of them need (httpx, psycopg, psutil) is imported when one of them is read for the first time.
"""

from lbswitch.traffic.sources.polling import Sources, read_once

__all__ = ["Sources", "read_once"]
