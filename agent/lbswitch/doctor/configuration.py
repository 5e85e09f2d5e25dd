"""The configuration file, the templates, and what both render to."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from lbswitch import overrides
from lbswitch.core.config import Config
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, warning
from lbswitch.doctor.words import in_short, user
from lbswitch.errors import BalancerError, ConfigError, LbswitchError, StateError


def invalid(case: Case) -> Iterator[Finding]:
    """The file can't be used: every problem with its line."""
    try:
        case.loaded  # noqa: B018 - may raise
    except ConfigError as failed:
        for line in str(failed).splitlines():
            yield error(line, f"mend it; lbswitch check --config {case.config_path} judges it")


def not_in_use(case: Case) -> Iterator[Finding]:
    """The agent goes on with an older configuration or older files."""
    about = case.status["agent"]["config"]
    if about["error"]:
        yield error(
            f"the agent does not use the configuration on disk: {in_short(about['error'])}",
            f"mend {about['path']}; the agent applies it by itself",
        )
    if about["files_error"]:
        yield error(
            f"the agent could not apply what it renders: {in_short(about['files_error'])}",
            "lbswitch check says what is wrong; a mended template is applied by itself",
        )


def rights(case: Case) -> Iterator[Finding]:
    """Others than root can write what an agent that is root reads."""
    if not _runs_as_root(case):
        return
    for path in _trusted(case.config_path, case.config):
        yield from _writable(path)


def _runs_as_root(case: Case) -> bool:
    """The agent, by the owner of its socket or state; without any of them who asks now."""
    for path in (Path(case.config.agent.socket), case.state_dir / "agent.lock"):
        try:
            return path.stat().st_uid == 0
        except OSError:
            continue
    return case.host.is_root


def _trusted(config_path: Path, config: Config) -> Iterator[Path]:
    path = config_path.absolute()
    yield from (path, path.parent)
    if config.balancer.templates is not None:
        directory = Path(config.balancer.templates)
        yield from (directory, *sorted(directory.rglob("*.j2")))


def _writable(path: Path) -> Iterator[Finding]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    is_sticky = stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
    if found.st_uid != 0:
        yield warning(
            f"{path} belongs to {user(found.st_uid)}, who can make the agent, which is root, do anything",
            f"chown root: {path}",
        )
    if mode & 0o002 and not is_sticky:
        yield error(
            f"{path} can be written by everybody (mode {mode:04o}), and the agent that reads it is root",
            f"chmod o-w {path}",
        )


def older_templates(case: Case) -> Iterator[Finding]:
    """Overrides that were made from a stock template of another version."""
    for one in overrides.of(case.config_path, None).templates if case.config else ():
        if one.base is overrides.Base.OLDER:
            yield warning(
                f"{one.path} was made from the {one.file} of lbswitch {one.made_with}, which is not the stock template "
                "any more: what a newer version mended or needs there may be missing",
                f"lbswitch templates diff {one.name}; carry your changes over to a new copy",
            )


def program(case: Case) -> Iterator[Finding]:
    """The balancer's program is missing, or too old for what is used."""
    try:
        case.balancer.version()
    except BalancerError as failed:
        yield error(in_short(failed), f"install a newer {case.config.balancer.kind}, or set balancer.binary")


def refused(case: Case) -> Iterator[Finding]:
    """What would be written next is refused by a template or by the balancer's own checker."""
    case.version  # noqa: B018 - raises NotChecked
    try:
        case.balancer.check(case.rendered)
    except StateError as failed:
        raise NotChecked(str(failed)) from failed
    except BalancerError as failed:
        yield error(f"the next change would fail: {in_short(failed)}", "mend it; lbswitch check says all of it")


def warnings(case: Case) -> Iterator[Finding]:
    """What the adapter itself knows."""
    case.version  # noqa: B018 - raises NotChecked
    try:
        said = case.balancer.warnings()
    except LbswitchError as failed:
        raise NotChecked(str(failed)) from failed
    for sentence in said:
        what, _, mend = sentence.rpartition(": ")
        yield warning(what or sentence, mend if what else "as it says")


def costly_reloads(case: Case) -> Iterator[Finding]:
    """Nginx before 1.27.4 cuts connections that are idle when it reloads, and here each switch is a reload."""
    if case.version_number >= (1, 27, 4):
        return
    for name, service in case.services.items():
        if service.switching == "reload":
            yield warning(
                f"nginx {case.version} cuts idle keep-alive connections when it reloads, and with switching: reload "
                f"every switch of {name} is a reload: it waits 0.3 s for clients to leave, and who was idle for longer "
                "may lose a request that is on its way",
                f"services.{name}.switching: pointer; or nginx 1.27.4 or newer (keepalive_min_timeout)",
                name,
            )
