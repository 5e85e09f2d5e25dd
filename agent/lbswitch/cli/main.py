"""The `lbswitch` command: its groups, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from lbswitch.cli.options import LazyGroup, Settings
from lbswitch.cli.output import complain, paragraph, say_json
from lbswitch.client import AgentProblem, NobodyAnswers
from lbswitch.core import defaults
from lbswitch.core.sentences import operation_sentence
from lbswitch.errors import ConfigError, InvalidRequest, LbswitchError, problem_document

_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
_COMMANDS = {
    "green": "switching",
    "blue": "switching",
    "rollback": "switching",
    "status": "status",
    "history": "history",
    "show": "history",
    "monitor": "monitoring",
    "drain": "drain",
    "freeze": "freezing",
    "release": "freezing",
    "snapshots": "snapshots",
    "restore": "snapshots",
    "apply": "applying",
    "check": "local",
    "render": "local",
    "doctor": "doctor",
    "alerts": "alerts",
    "balancer": "local",
    "agent": "agent",
    "init": "setup",
    "uninstall": "setup",
    "templates": "templates",
    "config": "config",
    "completion": "completion",
}


class _Root(LazyGroup):
    """Tells Ctrl-C from everything else before click does."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises: _Interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


class _Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


@click.group(cls=_Root, places={name: f"lbswitch.cli.{module}" for name, module in _COMMANDS.items()})
def cli() -> None:
    r"""Switch a service's traffic between blue and green on nginx or HAProxy, and see that it happened.

    The commands talk to the agent on this host through its unix socket. init, uninstall, check, render, doctor,
    templates, snapshots, balancer, config and completion need no agent. The agent is never in the way of traffic: when
    it is down the balancer goes on serving what was live.

    \b
    Examples:
      lbswitch green                          all traffic to green, verified at the service's own listener
      lbswitch green --weight 10              a canary: 10% to green, the rest stays on blue
      lbswitch green --expect blue            only if blue is live now (for scripts)
      lbswitch rollback                       back to what was serving before
      lbswitch status --watch                 look on
      lbswitch --json -s shop green           one JSON document for a deploy script

    \b
    Exit codes:
      0    done, or it was so already
      1    unexpected error, or putting back a failed switch failed too (the agent goes on trying)
      2    usage or configuration error
      3    refused by a gate, nothing was changed
      4    failed and was reverted, nothing was changed
      5    monitor: the release was rolled back
      6    the agent can't be reached, or went away before it answered
      7    conflict: --expect does not hold and there is something to do, or another operation is running
      8    not allowed
      9    monitor: not enough evidence; drain --wait: nobody can know how many connections are open
      10   monitor: a breach, and no rollback was asked for
      130  interrupted with Ctrl-C

    \b
    Environment:
      LBSWITCH_CONFIG, LBSWITCH_SOCKET, LBSWITCH_URL   stand in for the options of that name
      NO_COLOR                                         no color on a terminal either

    The agent is looked for at --url, --socket, LBSWITCH_URL, LBSWITCH_SOCKET, the configuration file's
    agent.socket, and /run/lbswitch/agent.sock, in this order. The last one is also asked, with a note, when the file
    is too broken to tell.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default `sys.argv`) and give its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings(given)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(given, prog_name="lbswitch", standalone_mode=False, obj=settings)
        _note_the_socket(settings)
        return code if isinstance(code, int) else 0
    except (_Interrupted, click.Abort):
        return _give_up("interrupted; an operation that the agent was asked for goes on", settings)
    except click.ClickException as error:
        return _usage(error, settings)
    except AgentProblem as error:
        return _agent_said_no(error, settings)
    except LbswitchError as error:
        return _failed(error, settings)
    except OSError as error:
        return _failed(LbswitchError(str(error)), settings)
    except Exception as error:
        return _bug(error, settings)


def _note_the_socket(settings: Settings) -> None:
    """Whoever was answered by the usual agent learns that the configuration file may mean another one."""
    if settings.config_error is not None:
        complain(f"lbswitch: note: {defaults.SOCKET} was asked; {paragraph(settings.socket_advice(), '  ')}")


def _give_up(text: str, settings: Settings) -> int:
    if settings.json:
        say_json({"type": "about:blank", "title": "Interrupted", "status": 499, "exit_code": _INTERRUPTED})
    complain(f"lbswitch: {text}")
    return _INTERRUPTED


def _usage(error: click.ClickException, settings: Settings) -> int:
    """Click's own words and exit code for a command line that makes no sense."""
    if settings.json or settings.seems_json:
        problem = problem_document(InvalidRequest(error.format_message()))
        say_json({**problem, "exit_code": error.exit_code})
    error.show()
    return error.exit_code


def _agent_said_no(error: AgentProblem, settings: Settings) -> int:
    """The operations if there are any, else the problem, each in its way."""
    document = error.document
    operations = document.get("operations") or [document[key] for key in ("operation",) if document.get(key)]
    if settings.json:
        say_json({"operations": operations} if "operations" in document else (*operations, document)[0])
    for operation in operations:
        complain(operation_sentence(operation))
    if not operations:
        complain(f"lbswitch: {paragraph(error)}")
    _note_the_socket(settings)
    return error.exit_code


def _failed(error: LbswitchError, settings: Settings) -> int:
    advice = f"\n{settings.start_advice()}" if isinstance(error, NobodyAnswers) else ""
    if settings.config_error is not None:
        advice += f"\n{settings.socket_advice()}"
    if settings.json:
        say_json({**problem_document(error), "detail": f"{error}{advice}"})
    prefix = "" if isinstance(error, ConfigError) else "lbswitch: "
    complain(prefix + paragraph(f"{error}{advice}"))
    return error.exit_code


def _bug(error: Exception, settings: Settings) -> int:
    """Nobody foresaw it: the traceback is what a bug report needs."""
    import traceback

    complain(traceback.format_exc().rstrip())
    return _failed(LbswitchError(f"unexpected {type(error).__name__}: {error}; please report it"), settings)


if __name__ == "__main__":
    sys.exit(main())
