"""`init` and `uninstall`: plug into somebody else's nginx or HAProxy, and out again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lbswitch.cli.options import Command, Settings, pass_settings
from lbswitch.cli.output import complain, has_color, paint, paragraph, printable, say, say_json
from lbswitch.core import defaults

if TYPE_CHECKING:
    from lbswitch.setup.asking import Ask, Option
    from lbswitch.setup.carry_out import Outcome
    from lbswitch.setup.proposal import Plan
    from lbswitch.setup.removal import Removal
    from lbswitch.setup.wishes import Wishes

_NO_CONSENT = 2
_DECLINED = 3
_T = TypeVar("_T", bound=Callable[..., Any])
_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option("--balancer", type=click.Choice(["nginx", "haproxy"]), help="Which one it is about."),
    click.option(
        "--guest/--managed", default=None, help="Plug into the one that is there, or have one of lbswitch's own."
    ),
    click.option("--nginx-config", metavar="PATH", help="The owner's main file, instead of the one that runs."),
    click.option("--haproxy-config", metavar="PATH", multiple=True, help="What haproxy -f is given; may be repeated."),
    click.option("--output-dir", metavar="DIR", help="Where lbswitch writes; lbswitch/ beside the main file."),
    click.option("--state-dir", metavar="DIR", help=f"Pointer, journal, record; {defaults.STATE_DIR}."),
    click.option("--control", type=click.Choice(["signal", "systemd"]), help="How it is reloaded."),
    click.option("--unit", metavar="NAME.service", help="With --control systemd: the unit."),
    click.option("--pid-file", metavar="PATH", help="With --control signal: the master's pid file."),
    click.option("--master-socket", metavar="PATH", help="HAProxy: the socket given to -S."),
    click.option("--bind", metavar="ADDR", help="Where the service is reached from this host, such as 127.0.0.1:80."),
    click.option("--blue", metavar="ADDR[,ADDR]", help="Servers of blue."),
    click.option("--green", metavar="ADDR[,ADDR]", help="Servers of green."),
    click.option("--adopt-blue", metavar="NAME", help="The upstream or backend whose servers are blue."),
    click.option("--adopt-green", metavar="NAME", help="The upstream or backend whose servers are green."),
    click.option("--server", metavar="NAME", help="Only in this server_name or frontend."),
    click.option("--health-path", metavar="PATH", help="Which path tells whether a server is well; /health."),
    click.option("--verify-host", metavar="NAME", help="The host name that reaches the service."),
    click.option("--verify-prefix", metavar="PATH", help="HAProxy: what the path begins with, where that chooses."),
    click.option("--verify-tls/--no-verify-tls", default=None, help="Whether --bind speaks TLS."),
    click.option("--user", metavar="NAME", help="Whose lbswitch's files are; lbswitch if there is such a user."),
    click.option(
        "--tune/--no-tune", default=True, help="HAProxy: add settings without which a reload loses requests; on."
    ),
)


def _with_options(command: _T) -> _T:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(cls=Command, for_service=True, short_help="Plug lbswitch into the nginx or HAProxy of this host.")
@_with_options
@click.option("--restart", is_flag=True, help="HAProxy: restart it where a reload is not enough.")
@click.option("--yes", is_flag=True, help="Do what is proposed, without asking.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@pass_settings
def init(settings: Settings, /, restart: bool, yes: bool, dry_run: bool, **given: Any) -> int:
    r"""Find the nginx or HAProxy of this host, propose a configuration, and plug in: with consent only.

    The diff of every file that would be touched is shown first: lbswitch.yaml, one or two lines in the owner's files,
    and new files. They are written together, checked by the balancer's own checker, loaded with a reload and seen at
    the service's listener; whatever fails puts every file back byte for byte. lbswitch uninstall undoes it.

    On a terminal it asks for what it can't find out; everywhere else the options say it. Where a service exists
    already, another one is added to lbswitch.yaml.

    \b
    Examples:
      lbswitch init
      lbswitch init --dry-run --service shop --adopt-blue shop --green 10.0.0.6:8080
      lbswitch init --yes --service shop --adopt-blue shop_blue --adopt-green shop_green
      lbswitch init --yes --balancer haproxy --restart --health-path /healthz
    """
    settings.only_local("init")
    wishes = _wishes(settings, given)
    ask = _interview(settings, yes=yes)
    if (code := _recovered(settings, _state_dir(wishes.config_path, wishes.state_dir), yes=yes, dry_run=dry_run)) > 0:
        return code
    from lbswitch.setup.asking import Nobody
    from lbswitch.setup.proposal import propose

    plan = propose(wishes, ask or Nobody())
    if not settings.json:
        _tell_plan(plan, restart=restart)
    answer = _consent(settings, _plan_document(plan), ask, yes=yes, dry_run=dry_run)
    if answer is not None:
        return answer
    from lbswitch.setup.carry_out import carry_out

    if plan.restart and ask is not None and not restart:
        restart = click.confirm(f"Restart {plan.unit} now, which closes all connections?", default=False)
    outcome = carry_out(plan, restart=restart)
    if settings.json:
        say_json({**_plan_document(plan), "applied": True, **_outcome_document(outcome)})
    else:
        _tell_outcome(outcome, f"{plan.service}: {_count(outcome)} written and checked", "the listener shows it")
        then = "then" if outcome.todo else "next:"
        say(f"{then} start the agent (systemctl start lbswitch, or: lbswitch agent) and look: lbswitch status")
    return 0


@click.command(cls=Command, short_help="Take lbswitch out of the owner's nginx or HAProxy.")
@click.option("--state-dir", metavar="DIR", help="Where the record of init is, when lbswitch.yaml is gone.")
@click.option("--purge", is_flag=True, help="Also remove the state directory and the lbswitch.yaml that init made.")
@click.option("--force", is_flag=True, help="Also when traffic moves to another color by it.")
@click.option("--restart", is_flag=True, help="HAProxy: restart it where a reload is not enough.")
@click.option("--yes", is_flag=True, help="Do it, without asking.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@pass_settings
def uninstall(
    settings: Settings, state_dir: str | None, purge: bool, force: bool, restart: bool, yes: bool, dry_run: bool
) -> int:
    r"""Undo lbswitch init: the owner's files become what they were, byte for byte.

    A file that its owner has edited since keeps those edits: only lbswitch's lines are taken out, and the diff is shown
    first. Traffic goes where the owner's own lines send it; when that is another color than the live one, it is refused
    without --force. The agent has to be stopped first. lbswitch.yaml and the state directory stay, unless --purge.

    \b
    Examples:
      lbswitch uninstall --dry-run
      lbswitch uninstall --yes        # after: systemctl disable --now lbswitch
    """
    settings.only_local("uninstall")
    ask = _interview(settings, yes=yes)
    directory = _state_dir(Path(settings.config_path), state_dir)
    if (code := _recovered(settings, directory, yes=yes, dry_run=dry_run)) > 0:
        return code
    from lbswitch.setup.removal import propose, remove

    removal = propose(directory, force=force, purge=purge)
    if not settings.json:
        _tell_removal(removal)
    answer = _consent(settings, _removal_document(removal), ask, yes=yes, dry_run=dry_run)
    if answer is not None:
        return answer
    outcome = remove(removal, restart=restart, purge=purge)
    if settings.json:
        say_json({**_removal_document(removal), "applied": True, **_outcome_document(outcome)})
    else:
        seen = "the listener no longer answers for lbswitch"
        _tell_outcome(outcome, f"lbswitch is taken out: {_count(outcome)} restored or removed and checked", seen)
        if not purge:
            say(f"kept: {settings.config_path}, {directory}; systemctl disable lbswitch keeps the agent from starting")
    return 0


# -- what is wanted ----------------------------------------------------------------------------------------------


def _wishes(settings: Settings, given: dict[str, Any]) -> Wishes:
    from lbswitch.core.config import BalancerKind, Control
    from lbswitch.setup.wishes import Wishes

    nginx, haproxy = given.pop("nginx_config"), given.pop("haproxy_config")
    if nginx and haproxy:
        raise click.UsageError("--nginx-config and --haproxy-config exclude each other")
    balancer = given.pop("balancer") or ("nginx" if nginx else "haproxy" if haproxy else None)
    if (nginx and balancer == "haproxy") or (haproxy and balancer == "nginx"):
        raise click.UsageError(f"--balancer is {balancer}, but the configuration is named for the other one")
    guest, control = given.pop("guest"), given.pop("control")
    blue, green = _list(given.pop("blue")), _list(given.pop("green"))
    return Wishes(
        Path(settings.config_path).absolute(),
        balancer=BalancerKind(balancer) if balancer else None,
        managed=None if guest is None else not guest,
        config=tuple(str(Path(path).absolute()) for path in (haproxy or ((nginx,) if nginx else ()))),
        control=Control(control) if control else None,
        service=settings.service,
        socket=settings.listen_socket,
        blue=blue,
        green=green,
        **given,
    )


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _state_dir(config_path: Path, given: str | None) -> Path:
    """`--state-dir`, else that of the configuration file, else the usual one."""
    if given is not None:
        return Path(given).absolute()
    from lbswitch import configfile
    from lbswitch.errors import ConfigError

    try:
        return Path(configfile.load(config_path).agent.state_dir)
    except ConfigError:
        return Path(defaults.STATE_DIR)


# -- asking ------------------------------------------------------------------------------------------------------


class _Interview:
    """A person at a terminal."""

    def choose(self, flag: str, question: str, why: str, options: Sequence[Option], default: str | None) -> str:
        """One of the numbered options."""
        say(f"\n{question} ({flag})\n  {why}")
        for number, option in enumerate(options, 1):
            say(f"  {number}. {printable(option.label)}")
        values = [option.value for option in options]
        proposed = values.index(default) + 1 if default in values else None
        number = click.prompt("  Number", type=click.IntRange(1, len(options)), default=proposed)
        return values[int(number) - 1]

    def text(self, flag: str, question: str, why: str, default: str | None) -> str:
        """What is typed."""
        say(f"\n{question} ({flag})\n  {why}")
        return str(click.prompt("  Answer", default=default))


def _interview(settings: Settings, *, yes: bool) -> Ask | None:
    """Somebody who answers, None when nobody is to be asked."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return _Interview() if is_terminal and not yes and not settings.json else None


def _consent(settings: Settings, document: dict[str, Any], ask: Ask | None, *, yes: bool, dry_run: bool) -> int | None:
    """None to go on, else the exit code."""
    if dry_run:
        if settings.json:
            say_json({**document, "applied": False, "dry_run": True})
        else:
            say("dry run: nothing was changed")
        return 0
    if yes:
        return None
    if ask is not None:
        if click.confirm("\nWrite these changes and reload?", default=False):
            return None
        say("nothing was changed")
        return _DECLINED
    words = "nothing was changed, because nobody has consented: say --yes, or run it on a terminal"
    if settings.json:
        say_json({**document, "applied": False, "detail": words})
    complain(f"lbswitch: {words}")
    return _NO_CONSENT


def _recovered(settings: Settings, state_dir: Path, *, yes: bool, dry_run: bool) -> int:
    """Undo what a crash has left, before anything is looked at; 0 to go on."""
    from lbswitch.setup.carry_out import recover
    from lbswitch.setup.record import Record

    record = Record.open(state_dir)
    if record is None or record.pending is None:
        return 0
    complain(f"an {record.pending.what} that did not end left these files half done; they will be put back first:")
    for path in record.pending.before:
        complain(f"  {path}")
    if dry_run or not (yes or (_interview(settings, yes=yes) and click.confirm("Put them back?", default=True))):
        complain("lbswitch: nothing was changed: say --yes, or run it on a terminal")
        if settings.json:
            say_json({"applied": False, "unfinished": [str(path) for path in record.pending.before]})
        return _NO_CONSENT
    for line in recover(state_dir):
        complain(line)
    return 0


# -- telling -----------------------------------------------------------------------------------------------------


def _tell_plan(plan: Plan, *, restart: bool) -> None:
    if plan.found is not None:
        say(f"found: {printable(plan.found)}")
    for change in plan.changes:
        say(f"  {'changes' if change.before else 'creates'} {change.path}")
    if plan.found is not None:
        say(f"  writes  {plan.config.balancer.output_dir}, {plan.config.agent.state_dir}")
    _tell_diff(plan.diff())
    for note in plan.notes:
        say(f"note: {paragraph(note, '  ')}")
    if plan.found is not None and plan.user is None and os.geteuid() == 0:
        say(
            "note: lbswitch's files become root's. For an agent that runs as lbswitch, install its service files\n"
            "  first: they bring the user"
        )
    for sentence in plan.by_hand:
        say(f"by hand: {paragraph(sentence, '  ')}")
    if plan.restart:
        from lbswitch.setup.carry_out import restart_sentence

        if restart:
            say(f"one restart of {plan.unit} is needed, and will be done: {plan.restart}. It closes all connections")
        else:
            say(f"one restart is needed, and is left to you: {restart_sentence(plan.restart, plan.unit)}")


def _tell_removal(removal: Removal) -> None:
    for sentence in removal.traffic:
        say(printable(sentence))
    for change in removal.changes:
        say(f"  {'removes' if change.after is None else 'restores'} {change.path}")
    say(f"  removes {removal.output}")
    _tell_diff(removal.diff())
    for note in removal.notes:
        say(f"note: {printable(note)}")


def _tell_diff(text: str) -> None:
    color = has_color()
    say("")
    if not text:
        return
    for line in text.splitlines():
        style = {"+": "green", "-": "red", "@": "dim"}.get(line[:1], "")
        say(f"  {paint(printable(line.expandtabs(4)), style, color=color)}".rstrip())
    say("")


def _tell_outcome(outcome: Outcome, what: str, seen: str) -> None:
    how = "restarted" if outcome.restarted else "reloaded" if outcome.reloaded else "not reloaded"
    say(f"{what}, the balancer was {how}{f', {seen}' if outcome.verified else ''}")
    for sentence in outcome.todo:
        say(f"left to do: {paragraph(sentence, '  ')}")


def _count(outcome: Outcome) -> str:
    count = len(outcome.changed)
    return "1 file" if count == 1 else f"{count} files"


def _plan_document(plan: Plan) -> dict[str, Any]:
    found = plan.found
    return {
        "service": plan.service,
        "config": str(plan.config_path),
        "balancer": None
        if found is None
        else {"kind": str(found.kind), "version": found.version, "pid": found.pid, "control": str(found.control)},
        "files": [{"path": str(each.path), "new": each.before is None} for each in plan.changes],
        "diff": plan.diff(),
        "notes": list(plan.notes),
        "by_hand": list(plan.by_hand),
        "restart": plan.restart,
    }


def _removal_document(removal: Removal) -> dict[str, Any]:
    return {
        "files": [{"path": str(each.path), "removed": each.after is None} for each in removal.changes],
        "diff": removal.diff(),
        "traffic": list(removal.traffic),
        "notes": list(removal.notes),
    }


def _outcome_document(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
