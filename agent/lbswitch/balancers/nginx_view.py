"""What the templates see of a configuration and an intent. Their heads explain every field."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lbswitch.balancers import nginx_shield, shielding
from lbswitch.balancers.nginx_binary import Program
from lbswitch.core import traffic_files
from lbswitch.core.config import Config, ServiceConfig, Switching, WeightsConfig
from lbswitch.core.model import Color, Intent, ServerKey, ServiceIntent
from lbswitch.core.names import guest_pool_name, pool_name, shielded_name, variable_name
from lbswitch.core.values import parse_endpoint
from lbswitch.ports import REVISION_MARK

_TEMP_PATHS = {"client_body": "", "proxy": "", "fastcgi": "http_fastcgi", "uwsgi": "http_uwsgi", "scgi": "http_scgi"}
_TRAFFIC = {"lease": traffic_files.LEASE, "traffic_log": traffic_files.GUEST_LOG}
_DRAWING = ("buckets", "split")
_UNDONE = ("access", "auth_basic", "limit_conn", "limit_req", "mirror")

PoolNames = Callable[[str, Color], str]
"""The name of a service's pool of a color."""


@dataclass(frozen=True, slots=True)
class Key:
    """What split or weighted services draw by. `variable` holds it, without the `$`."""

    by: str
    name: str
    variable: str
    has_buckets: bool

    @property
    def source(self) -> str:
        """Where nginx has it from."""
        if self.by == "header":
            return f"$http_{self.name}"
        return {"address": "$remote_addr", "cookie": "$http_cookie"}.get(self.by, "$request_id")

    @property
    def drawn(self) -> str:
        """The variable whose value decides; without the cookie or header that is the request's own id."""
        return f"${self.variable}" if self.name else self.source


@dataclass(frozen=True, slots=True)
class Pool:
    """The servers of a color, those left out left out."""

    name: str
    color: str
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shielded:
    """A pool under the shield: `tries` servers are asked, those of its own color first, and then `others`."""

    name: str
    color: str
    other: str
    servers: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def tries(self) -> int:
        """Every one of its own, and some of the others."""
        return len(self.servers) + min(shielding.MOST_OTHERS, len(self.others))

    @classmethod
    def of(cls, pool: Pool, other: Pool) -> Shielded:
        """The one with the other standing by."""
        return cls(shielded_name(pool.name), pool.color, other.color, pool.servers, other.servers)


def certificates(config: Config) -> Mapping[str, str]:
    """A hash of each service's certificate and key, so that a renewed one is rendered as a change, and reloaded."""
    return {
        name: f"{_fingerprint(service.tls.cert)}-{_fingerprint(service.tls.key)}"
        for name, service in config.services.items()
        if service.tls is not None
    }


def _fingerprint(path: str) -> str:
    """Twelve hex digits of the content's SHA-256, or `missing`."""
    try:
        status = Path(path).stat()
        return _hashed(path, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        return "missing"


@lru_cache(maxsize=4096)
def _hashed(path: str, *_stat: int) -> str:
    """Read again only when the file's time, size or inode changed. Raises: OSError."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def variables(config: Config, intent: Intent, program: Program, user: str, stamps: Mapping[str, str]) -> dict[str, Any]:
    """Everything that `nginx.conf.j2` may use; `stamps` are those of `certificates`."""
    services, keys = _services(config, intent, pool_name, Path(config.agent.state_dir) / "live", stamps)
    for service in services:
        blue, green = service["pools"]
        is_shielded = shielding.why_not(config, service["name"]) is None
        service["shielded"] = (Shielded.of(blue, green), Shielded.of(green, blue)) if is_shielded else ()
    return {
        "nginx": _nginx(config, program, user, services) | {"shield": str(nginx_shield.directory_of(config))},
        "keys": keys,
        "services": services,
        "repeatable": shielding.METHODS,
        "revision": REVISION_MARK,
    }


def guest_variables(
    config: Config, intent: Intent, program: Program, live: Path, output: Path, neighbors: list[str]
) -> dict[str, Any]:
    """Everything that the templates of a guest may use; `live` and `output` are paths as nginx sees them.

    `neighbors` are addresses beside nginx's own from which this host asks for the state.
    """
    services, keys = _services(config, intent, guest_pool_name, live, {})
    return {
        "nginx": _shared(program, services)
        | {name: str(live.parent / path) for name, path in _TRAFFIC.items()}
        | {"zone": "lbswitch_pools", "lacks": _lacking(program), "output": str(output), "neighbors": neighbors},
        "keys": keys,
        "services": services,
        "revision": REVISION_MARK,
    }


def _services(
    config: Config, intent: Intent, pool_names: PoolNames, live: Path, stamps: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[Key]]:
    choices = {name: _choice(config, name, intent.services[name]) for name in config.services}
    keys = _keys(config, choices)
    services = [
        _service(config, name, intent, pool_names, stamps.get(name, ""))
        | _way(config, name, choices[name], intent.services[name], keys, pool_names, live)
        for name in config.services
    ]
    return services, list(keys.values())


def _shared(program: Program, services: list[dict[str, Any]]) -> dict[str, Any]:
    """What an nginx of ours and one of somebody else's have in common."""
    servers = sum(len(pool.servers) for service in services for pool in service["pools"])
    return {
        # Measured: a pool with a server takes up to 1 KiB, each further server 0.8-0.9 KiB. At least twice that.
        "zone_size_kb": 64 + 4 * len(services) + 2 * servers,
        "peer": "$realip_remote_addr" if program.has_module("http_realip") else "$remote_addr",
        "has_http2_directive": program.has_http2_directive,
        "has_min_timeout": program.has_min_timeout,
    }


def _lacking(program: Program) -> list[str]:
    """Of the modules whose inherited settings the state location undoes, those that this nginx does not have."""
    lacking = [name for name in _UNDONE if program.lacks_module(f"http_{name}")]
    return lacking if program.has_module("http_auth_request") else [*lacking, "auth_request"]


def _nginx(config: Config, program: Program, user: str, services: list[dict[str, Any]]) -> dict[str, Any]:
    settings = config.balancer
    # Listeners count as connections; the rest is for a worker's channel, pointer and logs.
    connections = settings.connections + len(services) + 16
    return _shared(program, services) | {
        "workers": settings.workers or "auto",
        "user": user,
        "prefix": str(Path(config.agent.state_dir) / traffic_files.MANAGED_PREFIX),
        "lease": str(Path(config.agent.state_dir) / traffic_files.LEASE),
        "traffic_log": traffic_files.MANAGED_LOG,
        "connections": connections,
        "files": connections * 2,
        "variables": max(4096, 8 * len(services)),
        "zone": "lbswitch",
        "neighbors": [],
        "temp_paths": temp_paths(program),
    }


def temp_paths(program: Program) -> list[str]:
    """Which *_temp_path directives this nginx knows, without that ending."""
    return [name for name, module in _TEMP_PATHS.items() if not (module and program.lacks_module(module))]


def what_matters(config: Config, intent: Intent) -> Hashable:
    """The parts of an intent that a template sees; of a service with a pointer only whether it is weighted."""
    by_reload = config.switching_by_reload
    seen = [intent.services[name] if name in by_reload else intent.services[name].weighted for name in config.services]
    return intent.ejected, tuple(seen)


def _choice(config: Config, name: str, intent: ServiceIntent) -> str:
    """How the rendered file chooses the color (see the template's head)."""
    if config.switching(name) is Switching.RELOAD:
        return "split" if 0 < intent.route.share(Color.GREEN) < 100 else "fixed"
    return "buckets" if intent.weighted else "flag"


def _identity(service: ServiceConfig) -> tuple[str, str]:
    """Kind and name of what the service draws by; header names as nginx spells them in variables."""
    weights = service.weights or WeightsConfig()
    name = weights.sticky_name
    return weights.sticky_by, name.lower().replace("-", "_") if weights.sticky_by == "header" else name


def _keys(config: Config, choices: Mapping[str, str]) -> dict[tuple[str, str], Key]:
    """Each key once, however many services draw by it; numbered, since cookie names make poor variable names."""
    drawing = {name: _identity(config.services[name]) for name, choice in choices.items() if choice in _DRAWING}
    with_buckets = {drawing[name] for name in drawing if choices[name] == "buckets"}
    return {
        identity: Key(*identity, variable=f"lbswitch_key_{number}", has_buckets=identity in with_buckets)
        for number, identity in enumerate(dict.fromkeys(drawing.values()), start=1)
    }


def _service(config: Config, name: str, intent: Intent, pool_names: PoolNames, tls_stamp: str) -> dict[str, Any]:
    """What does not depend on how the color is chosen."""
    service = config.services[name]
    return {
        "name": name,
        "variable": f"lbswitch_{variable_name(name)}",
        "listen": service.bind,
        "http2": service.http2,
        "cert": service.tls.cert if service.tls else "",
        "key": service.tls.key if service.tls else "",
        "tls_stamp": tls_stamp,
        "underscores": service.weights is not None
        and "_" in service.weights.sticky
        and _identity(service)[0] == "header",
        "pools": [_pool(service, name, color, pool_names, intent.ejected) for color in Color],
        "blue": pool_names(name, Color.BLUE),
        "green": pool_names(name, Color.GREEN),
        "connect_ms": _milliseconds(service.timeouts.connect),
        "read_ms": _milliseconds(service.timeouts.read),
    }


def _way(
    config: Config,
    name: str,
    choice: str,
    intent: ServiceIntent,
    keys: Mapping[tuple[str, str], Key],
    pool_names: PoolNames,
    live: Path,
) -> dict[str, Any]:
    """How the color is chosen: by which files, or by what is rendered."""
    key = keys.get(_identity(config.services[name])) if choice in _DRAWING else None
    directory = live / name
    share = intent.route.share(Color.GREEN)
    if choice in ("flag", "buckets"):
        return {
            "choice": choice,
            "draw": f"${key.variable}_bucket" if key else "",
            "directory": str(directory),
            "flag": str(directory / Color.GREEN),
            "state": str(directory / "state"),
        }
    return {
        "choice": choice,
        "draw": key.drawn if key else "",
        "chosen": pool_names(name, Color.GREEN if share else Color.BLUE),
        "share_green": share,
        "state_text": f"{name} {intent.generation} {share}",
    }


def _pool(service: ServiceConfig, name: str, color: Color, pool_names: PoolNames, ejected: Iterable[ServerKey]) -> Pool:
    """A pool is never emptied: with all of its servers ejected it keeps them all."""
    servers = service.pool(color).servers
    out = {key.address for key in ejected if key.service == name and key.color is color}
    left = tuple(address for address in servers if address not in out)
    return Pool(pool_names(name, color), str(color), tuple(str(parse_endpoint(one)) for one in left or servers))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
