"""Where a check goes."""

from __future__ import annotations

import re
from ipaddress import ip_address

from lbswitch.core.config import HealthConfig
from lbswitch.core.values import Endpoint, parse_endpoint


def check_endpoint(address: str, config: HealthConfig) -> Endpoint:
    """The server's address with `health.port` in place of its own; for a unix socket that port of this machine."""
    endpoint = parse_endpoint(address)
    if config.port is None:
        return endpoint
    return Endpoint("127.0.0.1" if endpoint.is_unix else endpoint.host, config.port)


def server_name(endpoint: Endpoint, config: HealthConfig) -> str | None:
    """The name for SNI: `health.host`, else the server's host; None when that is an address (RFC 6066, section 3)."""
    name = re.sub(r":\d+$", "", config.host) if config.host else endpoint.host
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return name or None
    return None
