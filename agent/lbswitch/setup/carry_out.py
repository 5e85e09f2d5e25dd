"""Do what a plan says as one transaction: everything, seen at the service's own listener, or nothing.

Before the first edit the record with the original bytes is on disk. After that every failure, and after a crash the
next `init` or `uninstall`, puts every file back and has the balancer read them again.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers import control, nginx_guest_master
from lbswitch.core.config import BalancerKind, Config
from lbswitch.core.config_text import parse
from lbswitch.core.model import Intent, Route, ServiceIntent
from lbswitch.errors import BalancerError, LbswitchError, NotAllowed, NotSeen, StartFailed
from lbswitch.ports import Balancer, Rendered
from lbswitch.setup import record as records
from lbswitch.setup.changes import Content, FileChange, look, put
from lbswitch.setup.proposal import Plan
from lbswitch.setup.record import Record
from lbswitch.wiring import make_balancer, state_directory

Step = Callable[[str], None]
_PAUSE_S = 0.02
_AFTER_RELOAD = 10  # answers in a row: workers from before a reload take connections for a little while
_GONE_S = 15.0
_RESTART_S = 90.0


@dataclass(slots=True)
class Outcome:
    """What was done. `todo` are sentences: what is left to the owner."""

    changed: list[str] = field(default_factory=list)
    verified: bool = False
    reloaded: bool = False
    restarted: bool = False
    todo: list[str] = field(default_factory=list)


def no_step(_name: str) -> None:
    """Nobody wants to know."""


def carry_out(plan: Plan, *, restart: bool = False, step: Step = no_step) -> Outcome:
    """Do it. `restart` is the consent to restart the balancer where that is needed; `step` is told each step first.

    Raises: NotAllowed, StateError, BalancerError; all is as it was then.
    """
    refuse_unwritable(plan.changes)
    with state_directory(plan.state_dir):
        if plan.found is None:
            return _managed(plan)
        return _Transaction(plan, restart=restart, step=step).run()


def _managed(plan: Plan) -> Outcome:
    """A balancer of our own: the configuration file is all there is to write; the agent does the rest."""
    balancer = make_balancer(plan.config)
    balancer.check(balancer.render(_intent(plan, balancer)))
    for change in plan.changes:
        change.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        put(change.path, change.after)
    todo = ["start the agent, which starts the balancer: systemctl start lbswitch, or: lbswitch agent"]
    return Outcome([str(change.path) for change in plan.changes], todo=todo)


def _intent(plan: Plan, balancer: Balancer) -> Intent:
    """What is served: for the new service the color that gets its traffic now, for others what the disk says."""
    committed = balancer.committed()
    known = dict(committed.services) if committed is not None else {}
    known.pop(plan.service, None)
    generation = committed.generation + 1 if committed is not None else 1
    services = {
        name: known.get(name) or ServiceIntent(Route(service.initial), generation, service.weights is not None)
        for name, service in plan.config.services.items()
    }
    return Intent(services, generation)


class _Transaction:
    def __init__(self, plan: Plan, *, restart: bool, step: Step) -> None:
        self._plan = plan
        self._restart = restart and plan.restart is not None
        self._step = step
        self._balancer = make_balancer(plan.config)
        self._record = Record.open(plan.state_dir) or Record(plan.state_dir / "init")
        self._outcome = Outcome([str(change.path) for change in plan.changes])

    def run(self) -> Outcome:
        plan, balancer = self._plan, self._balancer
        balancer.version()
        intent = _intent(plan, balancer)
        rendered = balancer.render(intent)
        self._step("check-before")
        balancer.check(rendered)
        self._begin()
        try:
            self._do(intent, rendered)
        except BaseException as error:
            self._undo(error)
            raise
        self._finish()
        return self._outcome

    def _begin(self) -> None:
        plan, record = self._plan, self._record
        record.pending = records.pending("init", plan.changes, self._balancer.installed(), is_restart=self._restart)
        record.config_path = plan.config_path
        record.configuration = _text(plan)
        output = Path(str(plan.config.balancer.output_dir))
        missing = [path for path in [output, *(change.path.parent for change in plan.changes)] if not path.is_dir()]
        record.made += [each for path in missing for each in _ancestors(path) if each not in record.made]
        self._step("record")
        record.save()

    def _do(self, intent: Intent, rendered: Rendered) -> None:
        self._step("install")
        self._balancer.install(rendered)
        self._step("commit")
        self._balancer.commit(intent, [self._plan.service])
        for number, change in enumerate(self._plan.changes, 1):
            self._step(f"edit-{number}")
            change.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            put(change.path, change.after)
        self._step("check")
        self._balancer.check(rendered)
        self._load()
        if self._outcome.reloaded or self._outcome.restarted:
            self._verify(intent, rendered)

    def _load(self) -> None:
        """Have the running balancer read it, when it is running and would find our file."""
        plan = self._plan
        self._outcome.todo += plan.by_hand
        if plan.restart is not None and not self._restart:
            self._record.needs_restart = True
            self._outcome.todo.append(restart_sentence(plan.restart, plan.unit))
        elif not self._restart and not self._balancer.is_running():
            self._outcome.todo.append(self._balancer.why_not_started() or "start the balancer")
        elif self._restart or not self._is_left_to_owner():
            assert self._record.pending is not None  # noqa: S101 - narrows the type
            self._record.pending.is_loaded = True
            self._record.save()
            self._step("reload")
            self._reload()

    def _is_left_to_owner(self) -> bool:
        """HAProxy that nobody has told of our file would read lines that lead nowhere."""
        return bool(self._plan.by_hand) and self._plan.config.balancer.kind is BalancerKind.HAPROXY

    def _reload(self) -> None:
        if self._restart:
            restart_unit(self._plan.unit)
            self._outcome.restarted = True
        else:
            self._balancer.reload()
            self._outcome.reloaded = True

    def _verify(self, intent: Intent, rendered: Rendered) -> None:
        self._step("verify")
        name = self._plan.service
        settings = self._plan.config.services[name].verify
        deadline = time.monotonic() + settings.deadline
        in_a_row = 0
        while in_a_row < max(settings.answers, _AFTER_RELOAD):
            try:
                seen = self._balancer.observe(name)
                problem = "" if seen.shows(intent.services[name], rendered.revision) else f"{name}: it shows {seen}"
            except NotSeen as error:
                problem = str(error)
            in_a_row = 0 if problem else in_a_row + 1
            if problem and time.monotonic() > deadline:
                raise NotSeen(f"not seen within {settings.deadline:g} s at the listener: {problem}")
            if problem:
                time.sleep(_PAUSE_S)
        self._outcome.verified = True

    def _undo(self, error: BaseException) -> None:
        """Raises: BalancerError, when the balancer did not take the files as they were."""
        is_first = not self._record.services
        self._record.needs_restart = self._record.needs_restart and not is_first
        try:
            kept = put_back(self._record, self._balancer)
        except (LbswitchError, OSError) as second:
            raise StartFailed(
                f"{error}\nand not all could be put back: {second}\nlbswitch uninstall tries again"
            ) from error
        if kept:
            error.add_note("\n".join(kept))

    def _finish(self) -> None:
        plan, record = self._plan, self._record
        if plan.user is not None:
            give(plan.user, Path(str(plan.config.balancer.output_dir)), plan.state_dir)
        self._step("finish")
        record.keep(plan.changes)
        record.services[plan.service] = plan.original
        record.pending = None
        record.save()


def _text(plan: Plan) -> str:
    content = plan.changes[-1].after
    return "" if content is None else content.data.decode()


def _ancestors(path: Path) -> list[Path]:
    """The directories that have to be made for it, outermost first."""
    return [each for each in reversed([path, *path.parents]) if not each.exists()]


# -- going back --------------------------------------------------------------------------------------------------


def recover(state_dir: Path) -> list[str]:
    """Undo what a crash has left half done; sentences about it, none when there was nothing.

    Raises: StateError (an agent holds the directory; the record is damaged), BalancerError.
    """
    record = Record.open(state_dir)
    if record is None or record.pending is None:
        return []
    with state_directory(state_dir):
        record = Record.open(state_dir)
        if record is None or record.pending is None:
            return []
        what = record.pending.what
        kept = put_back(record, make_balancer(parse(record.configuration, str(record.config_path))))
    return [f"an {what} that did not end was undone: every file is as it was before it", *kept]


def put_back(record: Record, balancer: Balancer) -> list[str]:
    """Undo the pending operation: files, our own files, the running balancer. Gives what could not be.

    Raises: BalancerError, StateError, OSError.
    """
    pending = record.pending
    assert pending is not None  # noqa: S101 - narrows the type
    kept = []
    for path, before in reversed(pending.before.items()):
        now = look(path)
        if now is not None and not now.is_same(pending.after[path]) and not now.is_same(before):
            kept.append(f"{path} was left alone, because somebody has edited it in the meantime")
        elif now is not None or before is not None:
            put(path, before)
    if pending.what == "init":
        _back_to_revision(record, balancer, pending.revision)
    if pending.is_loaded:
        _read_again(record, balancer, restart=pending.is_restart)
    record.pending = None
    if record.services or kept:
        record.save()
    else:
        clear_output(balancer_output(record), record.made)
        record.remove()
    return kept


def _back_to_revision(record: Record, balancer: Balancer, revision: str | None) -> None:
    if revision is not None:
        balancer.reinstall(revision)
    record.configuration = _configuration_on_disk(record)


def _configuration_on_disk(record: Record) -> str:
    """What lbswitch.yaml says now that the file is back; what it was to be, when there is none."""
    content = look(record.config_path.resolve())
    return content.data.decode() if content is not None and not content.is_link else record.configuration


def _read_again(record: Record, balancer: Balancer, *, restart: bool) -> None:
    config = parse(record.configuration, str(record.config_path))
    if restart:
        restart_unit(unit_of(config))
    elif balancer.is_running():
        reload(config, balancer)


def reload(config: Config, balancer: Balancer) -> None:
    """Have the owner's files read again, whether anything of ours is in them or not. Raises: ReloadFailed."""
    if config.balancer.kind is BalancerKind.NGINX:
        nginx_guest_master.reload(control.make(config.balancer), lambda: None)  # the guest's own leaves others alone
    else:
        balancer.reload()


def balancer_output(record: Record) -> Path:
    """The directory that lbswitch writes to."""
    return Path(str(parse(record.configuration, str(record.config_path)).balancer.output_dir))


def unit_of(config: Config) -> str:
    """The unit of a balancer that systemd controls."""
    return config.balancer.unit or f"{config.balancer.kind}.service"


def clear_output(output: Path, made: Iterable[Path]) -> list[str]:
    """Remove what lbswitch wrote there, and directories that init made and nobody uses. Gives what stays."""
    import shutil

    shutil.rmtree(output / "rendered", ignore_errors=True)
    for path in [output / "current", *output.glob("*.map"), *output.glob(".*.map.*"), output / "state.sock"]:
        path.unlink(missing_ok=True)
    left = []
    with contextlib.suppress(OSError):
        output.rmdir()  # of no use to anybody else, also when it was there before
    for directory in sorted({*made}, key=lambda path: len(path.parts), reverse=True):
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            left.append(str(directory))
    return left


# -- small things ------------------------------------------------------------------------------------------------


def restart_sentence(why: str, unit: str) -> str:
    """What a restart costs."""
    return (
        f"systemctl restart {unit}: {why}, so a reload is not enough this one time. A restart closes all connections "
        "and refuses new ones for a moment; until then traffic goes where it went before (--restart does it at once)"
    )


def restart_unit(unit: str) -> None:
    """Restart it and wait until systemd says that it runs. Raises: StartFailed."""
    try:
        result = procs.run(["systemctl", "--no-pager", "--no-ask-password", "restart", unit], timeout_s=_RESTART_S)
    except (OSError, procs.TimedOut) as error:
        raise StartFailed(f"{unit} was not restarted: {error}") from error
    if not result.ok:
        raise StartFailed(f"{unit} was not restarted: {result.output.strip()}")


def give(user: str, *directories: Path) -> None:
    """Make what lies there the agent's, but for the record, which holds the owner's files. Raises: OSError."""
    found = pwd.getpwnam(user)
    for directory in directories:
        inside = (path for path in directory.rglob("*") if "init" not in path.relative_to(directory).parts[:1])
        for path in [directory, *inside]:
            os.chown(path, found.pw_uid, found.pw_gid, follow_symlinks=False)


def refuse_unwritable(changes: Iterable[FileChange]) -> None:
    """Raises: NotAllowed with every file that this user may not replace."""
    closed = [str(change.path) for change in changes if not _is_replaceable(change)]
    if closed:
        raise NotAllowed(
            f"user {os.geteuid()} may not change {', '.join(closed)}; nothing was changed. Run it as the user who may, "
            "such as with sudo; --dry-run shows the changes to anybody"
        )


def _is_replaceable(change: FileChange) -> bool:
    """Its directory takes a new file, and the new one could have the owner that the old one has."""
    directory = change.path.parent
    while not os.path.exists(directory):  # noqa: PTH110 - False where this user may not look
        directory = directory.parent
    me, owner = os.geteuid(), _owner(change.before)
    return os.access(directory, os.W_OK | os.X_OK) and (me == 0 or owner in (None, me))


def _owner(content: Content | None) -> int | None:
    return None if content is None else content.uid


def wait_until_gone(balancer: Balancer, services: Iterable[str]) -> None:
    """See that the listeners no longer answer for lbswitch. Raises: NotSeen."""
    deadline = time.monotonic() + _GONE_S
    for service in services:
        while True:
            try:
                balancer.observe(service)
            except BalancerError:
                break
            if time.monotonic() > deadline:
                raise NotSeen(f"{service}: the listener still answers for lbswitch {_GONE_S:g} s after the reload")
            time.sleep(_PAUSE_S)
