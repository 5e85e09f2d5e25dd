"""The way out: every file back byte for byte, or only our lines taken out where the owner has edited since."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lbswitch.balancers import control
from lbswitch.core.config import BalancerKind, Config
from lbswitch.core.config_text import parse
from lbswitch.core.model import Color
from lbswitch.errors import InvalidRequest, Refused, StateError
from lbswitch.ports import Balancer
from lbswitch.setup import record as records
from lbswitch.setup.carry_out import (
    Outcome,
    Step,
    clear_output,
    no_step,
    put_back,
    refuse_unwritable,
    reload,
    restart_sentence,
    restart_unit,
    unit_of,
    wait_until_gone,
)
from lbswitch.setup.changes import Content, FileChange, look, put
from lbswitch.setup.edits import NotOurs, take_out
from lbswitch.setup.record import Kept, Record
from lbswitch.wiring import make_balancer, state_directory


@dataclass(frozen=True, slots=True)
class Removal:
    """What uninstall would do. `traffic` are sentences: what serves now, and what will."""

    state_dir: Path
    config: Config
    changes: tuple[FileChange, ...]
    traffic: tuple[str, ...]
    notes: tuple[str, ...]
    output: Path

    def diff(self) -> str:
        """All changes as one unified diff."""
        return "\n".join(change.diff() for change in self.changes)


def propose(state_dir: Path, *, force: bool = False, purge: bool = False) -> Removal:
    """Find out what has to be put back; writes nothing.

    Raises: InvalidRequest (init has done nothing here), Refused (another color is live; lines that can't be found).
    """
    record = Record.open(state_dir)
    if record is None:
        raise InvalidRequest(
            f"{state_dir} has no record of an lbswitch init, so there is nothing to undo; --state-dir names another "
            "state directory"
        )
    config = parse(record.configuration, str(record.config_path))
    output = Path(str(config.balancer.output_dir))
    yaml_path = record.config_path.resolve()
    notes: list[str] = []
    problems: list[str] = []
    changes = []
    for path, kept in record.files.items():
        if path == yaml_path and not purge:
            continue
        try:
            change = _restored(path, kept, output, record, force=force)
        except NotOurs as problem:
            problems.append(str(problem))
            continue
        if change is None:
            continue
        changes.append(change)
        if change.before is not None and not change.before.is_same(kept.left):
            notes.append(f"{path} was edited since, so only lbswitch's lines are taken out")
    if problems:
        raise Refused("edited", "these have to be mended by hand first; nothing was changed:\n" + "\n".join(problems))
    traffic = _traffic(record, make_balancer(config), force=force)
    return Removal(state_dir, config, tuple(changes), tuple(traffic), tuple(notes), output)


def _restored(path: Path, kept: Kept, output: Path, record: Record, *, force: bool) -> FileChange | None:
    """The way back of one file, None when it is back already. Raises: NotOurs."""
    now = look(path)
    if now is None and kept.original is None:
        return None
    if now is None or now.is_same(kept.original):
        return None  # the owner has removed it, or put it back
    if now.is_same(kept.left):
        return FileChange(path, now, kept.original)
    if kept.original is None or now.is_link:
        if force:
            return FileChange(path, now, kept.original)
        raise NotOurs(f"{path} is lbswitch's and was edited since: remove it by hand, or use --force")
    after = replace(now, data=_taken_out(path, now, kept))
    left = list(_left_behind(path, now.data, after.data, output, record))
    if left:
        raise NotOurs("\n".join(left))
    return FileChange(path, now, after)


def _taken_out(path: Path, now: Content, kept: Kept) -> bytes:
    try:
        return take_out(now.data, kept.edits)
    except NotOurs as problem:
        raise NotOurs(f"{path}: {problem}; write what was there before by hand") from None


def _left_behind(path: Path, now: bytes, after: bytes, output: Path, record: Record) -> Iterator[str]:
    """Lines that would lead nowhere once lbswitch's files are gone."""
    names = "|".join(re.escape(name.replace("-", "_")) for name in record.services)
    pattern = re.compile(rf"\$lbswitch_(?:{names})\b|lbswitch_(?:{names})_|{re.escape(str(output))}/")
    left = set(after.splitlines())
    for number, raw in enumerate(now.splitlines(), 1):
        line = raw.decode(errors="replace")
        if raw in left and pattern.search(line.split("#", 1)[0]):
            yield f"{path}:{number}: `{line.strip()}` is about lbswitch and is not a line that init wrote: take it out"


def _traffic(record: Record, balancer: Balancer, *, force: bool) -> Iterator[str]:
    """Where traffic goes now and afterwards. Raises: Refused, when that differs and `force` is not said."""
    committed = balancer.committed()
    for name, (color, line) in record.services.items():
        intent = committed.services.get(name) if committed is not None else None
        if intent is None:
            yield f"{name}: goes to {color} afterwards (`{line}`)"
            continue
        serves = str(intent.route.live) if not intent.route.is_split else f"{intent.route}"
        if (intent.route.is_split or intent.route.live is not color) and not force:
            raise Refused("live", _moves(name, serves, color, line))
        yield f"{name}: {serves} serves now, and {color} afterwards (`{line}`)"


def _moves(name: str, serves: str, color: Color, line: str) -> str:
    return (
        f"{name}: {serves} serves now, but without lbswitch the line that was there before, `{line}`, sends all "
        f"traffic to {color}; nothing was changed. Switch first (lbswitch {color} -s {name}), or say --force"
    )


def remove(removal: Removal, *, restart: bool = False, purge: bool = False, step: Step = no_step) -> Outcome:
    """Do it. Raises: NotAllowed, StateError (an agent runs), BalancerError; all is as it was then."""
    refuse_unwritable(removal.changes)
    with state_directory(removal.state_dir):
        record = Record.open(removal.state_dir)
        if record is None:
            raise StateError(f"{removal.state_dir}: the record is gone, somebody else was faster")
        outcome = _Undoing(removal, record, restart=restart, step=step).run()
    if purge and not outcome.todo:
        _purge(removal.state_dir)
        outcome.changed.append(str(removal.state_dir))
    return outcome


class _Undoing:
    def __init__(self, removal: Removal, record: Record, *, restart: bool, step: Step) -> None:
        self._removal = removal
        self._record = record
        self._step = step
        self._balancer = make_balancer(removal.config)
        self._unit = unit_of(removal.config)
        self._was_restarted = any(change.path.name == "haproxy" for change in removal.changes) or record.needs_restart
        self._restart = restart and self._was_restarted
        self._outcome = Outcome([str(change.path) for change in removal.changes])

    def run(self) -> Outcome:
        record, removal = self._record, self._removal
        record.pending = records.pending("uninstall", removal.changes, None, is_restart=self._restart)
        self._step("record")
        record.save()
        try:
            self._do()
        except BaseException:
            put_back(record, self._balancer)
            raise
        self._step("forget")
        self._clean()
        return self._outcome

    def _do(self) -> None:
        for number, change in enumerate(self._removal.changes, 1):
            self._step(f"edit-{number}")
            put(change.path, change.after)
        self._step("check")
        installed = self._balancer.installed()
        if installed is not None:
            self._balancer.check(self._balancer.read(installed))
        if not self._balancer.is_running():
            return
        assert self._record.pending is not None  # noqa: S101 - narrows the type
        self._record.pending.is_loaded = True
        self._record.save()
        self._step("reload")
        if self._restart:
            restart_unit(self._unit)
            self._outcome.restarted = True
        else:
            reload(self._removal.config, self._balancer)
            self._outcome.reloaded = True
        self._step("verify")
        wait_until_gone(self._balancer, self._record.services)
        self._outcome.verified = True

    def _clean(self) -> None:
        """Our own files; those that the running HAProxy was told to read stay until it is restarted."""
        record = self._record
        if self._still_reads_ours():
            record.pending = None
            record.files = {}
            record.save()
            self._outcome.todo.append(
                restart_sentence("HAProxy still has lbswitch's file among its arguments", self._unit)
                + f"; then lbswitch uninstall removes {self._removal.output}"
            )
            return
        for path in clear_output(self._removal.output, record.made):
            if path != str(record.config_path.parent):
                self._outcome.todo.append(f"{path} was made by init and is left, because it is not empty")
        record.remove()
        self._outcome.changed.append(str(self._removal.output))

    def _still_reads_ours(self) -> bool:
        if self._removal.config.balancer.kind is not BalancerKind.HAPROXY or not self._balancer.is_running():
            return False
        ours = str(self._removal.output / "current" / "lbswitch.cfg")
        return ours in control.make(self._removal.config.balancer).arguments()


def _purge(state_dir: Path) -> None:
    """Remove the state; the directory itself goes too, but for what is not lbswitch's."""
    import shutil

    shutil.rmtree(state_dir, ignore_errors=True)
