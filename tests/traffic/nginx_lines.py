"""Lines as nginx logs them, and configurations whose services they are about."""

from pathlib import Path
from typing import Any

from lbswitch.core.config import Config

BLUE_1, GREEN_1, GREEN_2 = "127.0.0.1:9101", "127.0.0.1:9102", "127.0.0.1:9103"
AT = 1_700_000_000.0


def config(directory: Path = Path("/nowhere"), **services: Any) -> Config:
    """`shop` with a blue server and two green ones, or these services, in an nginx of ours."""
    colors = {"blue": {"servers": [BLUE_1]}, "green": {"servers": [GREEN_1, GREEN_2]}}
    found = {name: {"bind": "127.0.0.1:8080", **colors, **settings} for name, settings in services.items()}
    document = {
        "agent": {"state_dir": str(directory)},
        "balancer": {"kind": "nginx"},
        "services": found or {"shop": {"bind": "127.0.0.1:8080", **colors}},
    }
    return Config.model_validate(document)


def line(
    pool: str = "shop_green",
    servers: str = GREEN_1,
    statuses: str = "200",
    status: int = 200,
    header: str = "0.002",
    **rest: Any,
) -> bytes:
    """One line, without its end."""
    start = (pool, servers, statuses, status, rest.get("method", "GET"))
    values = {"at": AT, "took": header, "sent": "100", "id": "-", "path": "/a", **rest}
    end = (f"{values['at']:.3f}", values["took"], values["sent"], values["id"], values["path"])
    return f"{chr(9).join(map(str, start))}\t\t{header}\t\t{chr(9).join(end)}".encode()


def lines(*each: bytes) -> bytes:
    """Several, each with its end."""
    return b"".join(one + b"\n" for one in each)
