"""What the template of a guest is given: backends for somebody else's HAProxy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lbswitch.balancers.haproxy_maps import MapFiles
from lbswitch.balancers.haproxy_rendering import Server, milliseconds, servers
from lbswitch.balancers.listener import STATE_PATH
from lbswitch.balancers.templating import Templates
from lbswitch.core.config import Config, Mode
from lbswitch.core.model import Color
from lbswitch.core.names import guest_pool_name, variable_name
from lbswitch.ports import REVISION_MARK, Rendered, RenderedFile

FILE = "lbswitch.cfg"


@dataclass(frozen=True, slots=True)
class _Pool:
    name: str
    color: Color
    servers: tuple[Server, ...]


@dataclass(frozen=True, slots=True)
class _Service:
    """One service, as the template sees it; `variable` is its name where names hold no `-`."""

    name: str
    variable: str
    is_http: bool
    is_weighted: bool
    connect_ms: int
    read_ms: int
    pools: tuple[_Pool, ...]


class GuestRendering:
    """Renders the one file that lbswitch has in the owner's HAProxy; it depends on no route."""

    def __init__(self, config: Config, files: MapFiles, state_socket: Path, neighbors: Callable[[], list[str]]) -> None:
        """`state_socket` is this host's path; `neighbors` are addresses beside its own that may ask for the state."""
        self._config = config
        self._files = files
        self._state_socket = state_socket
        self._neighbors = neighbors
        override = config.balancer.templates
        self._templates = Templates("haproxy", None if override is None else Path(override))
        self._last: tuple[object, Rendered] | None = None

    @property
    def template_directories(self) -> tuple[Path, ...]:
        """Where templates are looked for, the operator's first."""
        return self._templates.directories

    def render(self) -> Rendered:
        """The file for this configuration. Raises: RenderFailed, CheckFailed (a path that HAProxy does not see)."""
        fingerprint = self._templates.fingerprint()
        if self._last is None or self._last[0] != fingerprint:
            content = self._templates.render("guest.cfg.j2", self._variables())
            self._last = (fingerprint, Rendered.of([RenderedFile(FILE, content)]))
        return self._last[1]

    def _variables(self) -> dict[str, object]:
        seen = self._files.seen
        return {
            "revision": REVISION_MARK,
            "live_map": str(seen(self._files.live)),
            "weights_map": str(seen(self._files.weights)),
            "state_socket": str(seen(self._state_socket)),
            "state_path": STATE_PATH,
            "neighbors": self._neighbors(),
            "services": [self._service(name) for name in self._config.services],
        }

    def _service(self, name: str) -> _Service:
        service = self._config.services[name]
        return _Service(
            name=name,
            variable=variable_name(name),
            is_http=service.mode is Mode.HTTP,
            is_weighted=service.weights is not None,
            connect_ms=milliseconds(service.timeouts.connect),
            read_ms=milliseconds(service.timeouts.read),
            pools=tuple(_Pool(guest_pool_name(name, color), color, servers(service, color)) for color in Color),
        )
