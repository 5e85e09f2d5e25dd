"""From wishes and findings to a plan: every file that would be touched, as it is and as it would be."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbswitch.balancers import nginx_config
from lbswitch.core import defaults
from lbswitch.core.config import BalancerKind, Config, Control
from lbswitch.core.config_text import parse
from lbswitch.core.model import Color
from lbswitch.errors import BalancerMissing, ConfigError, InvalidRequest, Problem
from lbswitch.setup import detect, haproxy_adopt, haproxy_loading, haproxy_text, nginx_adopt, yaml_text
from lbswitch.setup.adoption import Adoption, Pools, choose_service
from lbswitch.setup.asking import Ask, Option
from lbswitch.setup.changes import Content, FileChange, edited, look
from lbswitch.setup.detect import Found
from lbswitch.setup.wishes import Missing, Wishes

_UNIT_OF = {BalancerKind.NGINX: "nginx.service", BalancerKind.HAPROXY: "haproxy.service"}
_NONE_HERE = (
    "no nginx and no HAProxy was found, neither running nor installed. Install one (apt-get install nginx, or haproxy) "
    "or say where its configuration is: --balancer with --nginx-config or --haproxy-config"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What init would do. `changes` are in the order in which they are made, lbswitch.yaml last.

    `original` is, for the service, the color that gets its traffic when lbswitch is taken out, and the owner's line
    that sends it there. `restart` says why the balancer must be restarted once.
    """

    config_path: Path
    config: Config
    service: str
    found: Found | None
    changes: tuple[FileChange, ...]
    original: tuple[Color, str]
    notes: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    restart: str | None = None
    unit: str = ""
    user: str | None = None

    @property
    def state_dir(self) -> Path:
        """Where the record goes."""
        return Path(self.config.agent.state_dir)

    def diff(self) -> str:
        """All changes as one unified diff."""
        return "\n".join(change.diff() for change in self.changes)


@dataclass(slots=True)
class _Draft:
    """What lbswitch.yaml will say."""

    agent: dict[str, Any] = field(default_factory=dict)
    balancer: dict[str, Any] = field(default_factory=dict)
    service: dict[str, Any] = field(default_factory=dict)


def propose(wishes: Wishes, ask: Ask) -> Plan:
    """Find out and put together; writes nothing. Raises: InvalidRequest, ConfigError, BalancerError, OSError."""
    existing = _existing(wishes)
    found = None if existing is not None and wishes.managed is not False else _choose_balancer(wishes, ask)
    if existing is not None:
        found = found or _of_configuration(existing[1], wishes)
        managed = existing[1].balancer.managed
        if wishes.managed is not None and wishes.managed != managed:
            raise InvalidRequest(f"{wishes.config_path} has balancer.managed: {str(managed).lower()}; one file has one")
    else:
        managed = _is_managed(wishes, ask, found)
    if managed or found is None:
        return _managed(wishes, ask, existing, found)
    return _guest(wishes, ask, existing, found)


# -- what is there -----------------------------------------------------------------------------------------------


def _existing(wishes: Wishes) -> tuple[str, Config] | None:
    """The configuration file that is extended. Raises: ConfigError, also for one that is wrong."""
    if look(wishes.config_path) is None:
        return None
    text = wishes.config_path.read_text()
    config = parse(text, str(wishes.config_path))
    if wishes.service is not None and wishes.service in config.services:
        raise InvalidRequest(
            f"{wishes.config_path} has a service {wishes.service!r} already, and init changes none that is there: edit "
            "the file, or take another name"
        )
    if wishes.balancer is not None and wishes.balancer is not config.balancer.kind:
        raise InvalidRequest(
            f"{wishes.config_path} is about {config.balancer.kind}; {wishes.balancer} needs a file and a state "
            "directory of its own: --config and --state-dir"
        )
    return text, config


def _of_configuration(config: Config, wishes: Wishes) -> Found | None:
    """The balancer that an existing file is about; None when it is lbswitch's own."""
    balancer = config.balancer
    if balancer.managed:
        return None
    paths = tuple(map(str, balancer.config or ()))
    running = next((each for each in detect.detect() if _has_config(each, balancer.kind, paths)), None)
    return Found(
        balancer.kind,
        running.version if running else "",
        running.binary if running else str(balancer.binary or balancer.kind),
        wishes.config or paths,
        balancer.controlled_by,
        pid=running.pid if running else None,
        arguments=running.arguments if running else (),
        unit=balancer.unit or (_UNIT_OF[balancer.kind] if balancer.controlled_by is Control.SYSTEMD else ""),
        container=balancer.container or "",
        pid_file=balancer.pid_file or "",
        master_socket=balancer.master_socket,
    )


def _has_config(found: Found, kind: BalancerKind, paths: Sequence[str]) -> bool:
    wanted = {os.path.realpath(path) for path in paths}
    return found.kind is kind and any(os.path.realpath(path) in wanted for path in found.config)


def _choose_balancer(wishes: Wishes, ask: Ask) -> Found | None:
    """The balancer that is meant. Raises: Missing, InvalidRequest."""
    everything = [each for each in detect.detect() if not _is_lbswitchs(each)]
    if wishes.config and wishes.balancer is not None:
        return _named(everything, wishes, wishes.balancer)
    fitting = [each for each in everything if wishes.balancer in (None, each.kind)]
    running = [each for each in fitting if each.pid is not None] or fitting
    if not running:
        if wishes.managed is False:
            raise BalancerMissing(_NONE_HERE)
        return None
    if len(running) == 1:
        return running[0]
    kinds = {each.kind for each in running}
    by_name = {str(each.kind) if len(kinds) == len(running) else each.config[0]: each for each in running}
    flag = "--balancer" if len(kinds) == len(running) else " or ".join(f"--{kind}-config" for kind in sorted(kinds))
    options = [Option(name, str(each)) for name, each in by_name.items()]
    why = "One lbswitch.yaml is about one balancer."
    return by_name[ask.choose(flag, "Several balancers are here; which one is it about?", why, options, None)]


def _is_lbswitchs(found: Found) -> bool:
    """Whether it is one that lbswitch manages itself."""
    try:
        head = Path(found.config[0]).read_text(errors="replace")[:200]
    except OSError:
        return False
    return head.startswith("# Written by lbswitch")


def _named(everything: list[Found], wishes: Wishes, kind: BalancerKind) -> Found:
    """The one with these files: running, or not."""
    running = next((each for each in everything if _has_config(each, kind, wishes.config)), None)
    if running is not None:
        return running
    for path in wishes.config:
        if not Path(path).exists() and wishes.control is not Control.DOCKER:
            raise InvalidRequest(f"{path} does not exist")
    packaged = detect.installed(kind)
    binary = packaged.binary if packaged is not None else str(kind)
    version = packaged.version if packaged is not None else ""
    return Found(kind, version, binary, wishes.config, Control.SIGNAL, master_socket=wishes.master_socket)


def _is_managed(wishes: Wishes, ask: Ask, found: Found | None) -> bool:
    if wishes.managed is not None:
        return wishes.managed
    if found is None:
        return True
    options = [
        Option("guest", f"plug into this {found}: its owner's files stay, a few lines are added"),
        Option("managed", "an nginx or HAProxy of lbswitch's own, with a configuration that it writes whole"),
    ]
    why = "There is one already, so a few lines in it are enough."
    return ask.choose("--guest", "How should lbswitch work here?", why, options, "guest") == "managed"


# -- a balancer of our own ---------------------------------------------------------------------------------------


def _managed(wishes: Wishes, ask: Ask, existing: tuple[str, Config] | None, found: Found | None) -> Plan:
    kind = existing[1].balancer.kind if existing is not None else _own_kind(wishes, found)
    service = choose_service(wishes, ask)
    bind = wishes.bind or ask.text("--bind", "Where do clients connect?", "Such as 0.0.0.0:80 or *:80.", None)
    servers = {color: wishes.blue if color is Color.BLUE else wishes.green for color in Color}
    for color in Color:
        if not servers[color]:
            why = "host:port; several with commas between."
            servers[color] = _split(ask.text(f"--{color}", f"Where do the servers of {color} listen?", why, None))
    draft = _Draft(_agent(wishes), {"kind": str(kind)}, {"bind": bind, **_pools(servers)})
    draft.service["health"] = {"path": _health_path(wishes, ask)}
    text, config = _text(wishes, existing, service, draft)
    change = _yaml_change(wishes.config_path, text)
    return Plan(wishes.config_path, config, service, None, (change,), (Color.BLUE, ""))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _own_kind(wishes: Wishes, found: Found | None) -> BalancerKind:
    if wishes.balancer is not None:
        return wishes.balancer
    if found is not None:
        return found.kind
    kind = next((each for each in BalancerKind if detect.installed(each) is not None), None)
    if kind is None:
        raise BalancerMissing(_NONE_HERE)
    return kind


# -- a guest in somebody else's ----------------------------------------------------------------------------------


def _guest(wishes: Wishes, ask: Ask, existing: tuple[str, Config] | None, found: Found) -> Plan:
    _refuse_container(wishes, found)
    output = _output(wishes, existing, found)
    service, pools, adopted = _adopt(wishes, ask, found, output)
    if existing is not None and service in existing[1].services:
        raise InvalidRequest(f"{wishes.config_path} has a service {service!r} already: name this one with --service")
    loading = _loading(found, output, wishes)
    draft = _Draft(_agent(wishes), _balancer(wishes, found, output, loading.master_socket))
    draft.service = _service(wishes, ask, pools, adopted)
    text, config = _text(wishes, existing, service, draft)
    adopted.finish(config)
    changes = [edited(path, edits) for path, edits in adopted.edits.items()] + adopted.new_files
    if loading.change is not None:
        changes.append(loading.change)
    return Plan(
        wishes.config_path,
        config,
        service,
        found,
        (*changes, _yaml_change(wishes.config_path, text)),
        (adopted.initial, adopted.original),
        tuple(adopted.notes),
        (*adopted.by_hand, *filter(None, [loading.by_hand])),
        loading.restart,
        found.unit,
        agent_user(wishes.user),
    )


def agent_user(wanted: str | None) -> str | None:
    """Who the agent runs as, if that is not whoever runs this. Raises: InvalidRequest."""
    if os.geteuid() != 0:
        return None
    name = wanted or "lbswitch"
    try:
        pwd.getpwnam(name)
    except KeyError:
        if wanted is not None:
            raise InvalidRequest(f"--user {wanted}: there is no such user on this host") from None
        return None
    return name


def _group(wishes: Wishes) -> str | None:
    """The agent's group, if it is not whoever runs this."""
    user = agent_user(wishes.user)
    return None if user is None else grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def _refuse_container(wishes: Wishes, found: Found) -> None:
    if Control.DOCKER in (wishes.control, found.control):
        raise InvalidRequest(
            f"{found.kind} runs in a container ({(wishes.container or found.container)[:12]}), whose files init does "
            "not edit; docs/init.md has the lines to write with control: docker"
        )


def _output(wishes: Wishes, existing: tuple[str, Config] | None, found: Found) -> Path:
    if existing is not None and existing[1].balancer.output_dir is not None:
        return Path(existing[1].balancer.output_dir)
    return Path(wishes.output_dir or Path(found.config[0]).parent / "lbswitch")


def _adopt(wishes: Wishes, ask: Ask, found: Found, output: Path) -> tuple[str, Pools, Adoption]:
    if found.kind is BalancerKind.NGINX:
        return nginx_adopt.adopt(_nginx(found.config[0]), wishes, ask, output)
    texts = {path: path.read_bytes() for path in haproxy_text.files(found.config)}
    return haproxy_adopt.adopt(texts, wishes, ask)


def _nginx(main: str) -> nginx_config.NginxConfig:
    """The owner's configuration. Raises: ConfigError, when it can't be read as one; OSError."""
    texts = nginx_config.gather(main, lambda path: Path(path).read_bytes(), lambda path: os.listdir(path))  # noqa: PTH208
    config = nginx_config.load(texts, main)
    if config.problems:
        raise ConfigError(main, [Problem(problem) for problem in config.problems])
    return config


def _loading(found: Found, output: Path, wishes: Wishes) -> haproxy_loading.Loading:
    if found.kind is BalancerKind.NGINX:
        return haproxy_loading.Loading()
    socket = wishes.master_socket or found.master_socket
    ours = output / "current" / "lbswitch.cfg"
    return haproxy_loading.plan(found.config, found.arguments, found.unit, ours, socket, _group(wishes))


# -- lbswitch.yaml -----------------------------------------------------------------------------------------------


def _agent(wishes: Wishes) -> dict[str, Any]:
    agent: dict[str, Any] = {"state_dir": wishes.state_dir or defaults.STATE_DIR}
    return agent | ({"socket": wishes.socket} if wishes.socket else {})


def _balancer(wishes: Wishes, found: Found, output: Path, master_socket: str | None) -> dict[str, Any]:
    control = wishes.control or found.control
    unit = wishes.unit or found.unit
    named = found.config[0] if len(found.config) == 1 else list(found.config)
    settings: dict[str, Any] = {"kind": str(found.kind), "managed": False, "config": named, "output_dir": str(output)}
    if "/" in found.binary and not _is_usual(found.binary):
        settings["binary"] = found.binary
    settings["control"] = str(control)
    if control is Control.SYSTEMD and unit != _UNIT_OF[found.kind]:
        settings["unit"] = unit
    if control is Control.SIGNAL and wishes.pid_file:
        settings["pid_file"] = wishes.pid_file
    if found.kind is BalancerKind.HAPROXY:
        if master_socket is None:
            raise Missing(
                "--master-socket", "HAProxy runs without -S, and a switch reaches its workers only through it"
            )
        settings["master_socket"] = master_socket
    return settings


def _is_usual(binary: str) -> bool:
    return str(Path(binary).parent) in ("/usr/sbin", "/usr/local/sbin", "/usr/bin", "/sbin")


def _pools(servers: Mapping[Color, Sequence[str]]) -> dict[str, Any]:
    return {str(color): {"servers": list(servers[color])} for color in Color}


def _service(wishes: Wishes, ask: Ask, pools: Pools, adopted: Adoption) -> dict[str, Any]:
    seen = adopted.seen
    settings: dict[str, Any] = {"bind": seen.bind if seen else ""} | {
        key: value for key, value in adopted.service.items() if key != "health"
    }
    settings |= _pools(pools.servers)
    settings["initial"] = str(adopted.initial)
    is_tcp = adopted.service.get("mode") == "tcp"
    health = {"type": "tcp"} if is_tcp else {"path": _health_path(wishes, ask)}
    settings["health"] = {**health, **adopted.service.get("health", {})}  # type: ignore[dict-item]  # a mapping
    verify = {} if seen is None or is_tcp else {"host": seen.host, "tls": seen.tls or None, "prefix": seen.prefix}
    if kept := {key: value for key, value in verify.items() if value is not None}:
        settings["verify"] = kept
    return settings


def _health_path(wishes: Wishes, ask: Ask) -> str:
    why = "Both colors are asked for it all the time; 200-399 is healthy."
    return wishes.health_path or ask.text("--health-path", "Which path tells whether a server is well?", why, "/health")


def _text(wishes: Wishes, existing: tuple[str, Config] | None, name: str, draft: _Draft) -> tuple[str, Config]:
    """The text of lbswitch.yaml, read back. Raises: ConfigError, InvalidRequest."""
    source = str(wishes.config_path)
    if existing is None:
        text = yaml_text.new({"agent": draft.agent, "balancer": draft.balancer, "services": {name: draft.service}})
        return text, parse(text, f"proposed {source}")
    text = yaml_text.with_service(existing[0], source, name, draft.service)
    config = parse(text, f"proposed {source}")
    others = {key: service for key, service in config.services.items() if key != name}
    if (config.agent, config.balancer, others) != (existing[1].agent, existing[1].balancer, existing[1].services):
        raise InvalidRequest(f"{source} is written in a way that nothing can be added to by itself: add it by hand")
    return text, config


def _yaml_change(path: Path, text: str) -> FileChange:
    target = Path(os.path.realpath(path))
    before = look(target)
    mode, uid, gid = (0o644, None, None) if before is None else (before.mode, before.uid, before.gid)
    return FileChange(target, before, Content(text.encode(), mode, uid, gid))
