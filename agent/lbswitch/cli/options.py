"""The global options, accepted before and after every command, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import IO, Any, NoReturn

import click

import lbswitch
from lbswitch.client import Client, HttpUrl, UnixSocket
from lbswitch.core import defaults
from lbswitch.errors import ConfigError, InvalidRequest, LbswitchError, Problem, UnknownService

_COMPLETION_TIMEOUT_S = 0.5
_NAME_THE_SOCKET = "--socket or LBSWITCH_SOCKET name the agent's socket without a configuration file"
_ALIKE = 0.7  # from here on a name is worth suggesting (difflib's ratio): `greeen`, but not `--url` for `--all`


class Settings:
    """What the global options and the environment say. Given twice, an option's later value counts."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        """Keep the bare arguments: they tell what a command line wants that turns out to be wrong."""
        self.json = False
        self.seems_json = "--json" in arguments
        self.config: str | None = None
        self.socket: str | None = None
        self.url: str | None = None
        self.service: str | None = None
        self.config_error: ConfigError | None = None  # why the socket is not the one that the file names

    @property
    def config_path(self) -> str:
        """`--config`, `LBSWITCH_CONFIG`, or the usual place."""
        return self._named_config or defaults.CONFIG

    @property
    def _named_config(self) -> str | None:
        return self.config or os.environ.get("LBSWITCH_CONFIG") or None

    @property
    def listen_socket(self) -> str | None:
        """Where an agent that starts now is told to listen instead of `agent.socket`."""
        return self.socket or os.environ.get("LBSWITCH_SOCKET") or None

    def client(self, timeout_s: float | None = None) -> Client:
        """A client for the agent that is meant. Raises: ConfigError, InvalidRequest."""
        transport = self._transport()
        return Client(transport) if timeout_s is None else Client(transport, timeout_s)

    def _transport(self) -> UnixSocket | HttpUrl:
        if self.url:
            return HttpUrl(_checked_url(self.url, "--url"))
        if self.socket:
            return UnixSocket(self.socket)
        if url := os.environ.get("LBSWITCH_URL"):
            return HttpUrl(_checked_url(url, "LBSWITCH_URL"))
        if path := os.environ.get("LBSWITCH_SOCKET"):
            return UnixSocket(path)
        return UnixSocket(self._configured_socket())

    def _configured_socket(self) -> str:
        """`agent.socket` of the configuration file, else the usual one: a broken file keeps nobody from a rollback.

        Raises: ConfigError, when a file was named that does not tell it: that command is meant for no other agent.
        """
        if not self._named_config and _is_absent(defaults.CONFIG):
            return defaults.SOCKET
        from lbswitch.configfile import likely_socket, socket_of

        path = self.config_path
        try:
            return socket_of(path)
        except ConfigError as error:
            if (socket := likely_socket(path)) is not None:
                return socket
            if self._named_config:
                raise ConfigError(error.source, [*error.problems, Problem(_NAME_THE_SOCKET)]) from error
            self.config_error = error
            return defaults.SOCKET

    def socket_advice(self) -> str:
        """Why the usual socket was used although there is a configuration file; empty when that is not so."""
        if self.config_error is None:
            return ""
        return f"the configuration file does not tell the socket:\n{self.config_error}\n{_NAME_THE_SOCKET}"

    def start_advice(self) -> str:
        """How to start the agent that does not answer."""
        if self.url or (not self.socket and os.environ.get("LBSWITCH_URL")):
            return "start it on that host: systemctl start lbswitch (agent.listen must be set for --url)"
        named = f" --config {self._named_config}" if self._named_config else ""
        return f"start it: systemctl start lbswitch, or: lbswitch agent{named}"

    def chosen_service(self, client: Client) -> str:
        """`--service`, else the only one there is. Raises: InvalidRequest with the names of several."""
        if self.service:
            return self.service
        names = sorted(client.status()["services"])
        if len(names) == 1:
            return str(names[0])
        raise InvalidRequest(f"there are several services, say which with --service: {', '.join(names)}")

    def only_local(self, command: str) -> None:
        """Raises InvalidRequest when `--url` asks for what can only be done on this host."""
        if self.url:
            raise InvalidRequest(f"{command} works on this host's files and can't be asked for through --url")


def _is_absent(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - pathlib would have to be loaded
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _checked_url(url: str, source: str) -> str:
    host = url.removeprefix("http://").partition("/")[0]
    if url.startswith("http://") and host:
        return url
    raise InvalidRequest(
        f"{source} {url!r} is not http://HOST:PORT; an agent listens on loopback only and without TLS: "
        "from another machine go through an SSH tunnel"
    )


def require_service(status: dict[str, Any], name: str) -> Any:
    """One service of a Status document. Raises: UnknownService."""
    services = status["services"]
    if name not in services:
        raise UnknownService(f"there is no service {name!r}; known: {', '.join(sorted(services))}")
    return services[name]


def settings_of(context: click.Context) -> Settings:
    """The settings of this run."""
    settings: Settings = context.ensure_object(Settings)
    return settings


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Later values win: a command's options are read after those before it."""
    if value == "":
        raise click.BadParameter("is empty")
    if value is not None and parameter.name is not None:
        setattr(settings_of(context), parameter.name, value)


def _say_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        settings_of(context).json = True


def _say_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    version = lbswitch.__version__
    click.echo(f'{{"version": "{version}"}}' if settings_of(context).seems_json else f"lbswitch {version}")
    context.exit()


def _service_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's completion: the agent's services, if it answers at once."""
    try:
        names = settings_of(context).client(_COMPLETION_TIMEOUT_S).status()["services"]
    except LbswitchError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _global(*names: str, callback: Callable[..., None], text: str, **more: Any) -> click.Option:
    return click.Option(names, callback=callback, expose_value=False, help=text, **more)


def _global_options() -> list[click.Parameter]:
    return [
        _global(
            "--service", "-s", callback=_remember, metavar="NAME", shell_complete=_service_names,
            text="The service that is meant; needed only when there are several.",
        ),
        _global("--json", is_flag=True, callback=_say_json, text="Print exactly one JSON document on stdout."),
        _global(
            "--config", callback=_remember, metavar="FILE", type=click.Path(readable=False),
            text=f"Configuration file (LBSWITCH_CONFIG; {defaults.CONFIG}).",
        ),
        _global(
            "--socket", callback=_remember, metavar="PATH", type=click.Path(readable=False),
            text="The agent's unix socket (LBSWITCH_SOCKET; agent.socket of the configuration).",
        ),
        _global(
            "--url", callback=_remember, metavar="http://HOST:PORT",
            text="The agent's TCP address instead of its socket (LBSWITCH_URL).",
        ),
        _global("--version", is_flag=True, is_eager=True, callback=_say_version, text="Print the version and exit."),
    ]  # fmt: skip


class _WithGlobals(click.Command):
    """Adds the global options and lists them in a section of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["--help", "-h"], "max_content_width": 100})
        super().__init__(*args, **kwargs)
        self.help = _unescaped(self.help)
        self._globals = _global_options()
        self.params.extend(self._globals)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Like click's, and an option that is not there is compared with those that are really alike."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            names = [name for parameter in self.get_params(ctx) for name in parameter.opts]
            raise click.UsageError(
                f"No such option: {error.option_name}{_meant(error.option_name, names)}", ctx
            ) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [parameter for parameter in self.get_params(ctx) if parameter not in self._globals]
        _section(ctx, formatter, "Options", own)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        _section(ctx, formatter, "Global options, before or after any command", self._globals)


def _unescaped(text: str | None) -> str | None:
    """Click keeps the lines of a paragraph under a backspace, which raw docstrings spell with two characters."""
    return None if text is None else text.replace("\\b\n", "\b\n")


def _meant(given: str, names: Sequence[str]) -> str:
    """The names that are so much alike that one of them was probably meant; dashes don't count."""
    from difflib import get_close_matches

    known = {name.lstrip("-"): name for name in names if len(name.lstrip("-")) > 1}
    close = get_close_matches(given.lstrip("-"), known, n=2, cutoff=_ALIKE)
    return f"; did you mean {' or '.join(repr(known[name]) for name in close)}?" if close else ""


def _section(
    context: click.Context, formatter: click.HelpFormatter, title: str, parameters: Sequence[click.Parameter]
) -> None:
    records = [record for parameter in parameters if (record := parameter.get_help_record(context)) is not None]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


class Command(_WithGlobals):
    """A command; `for_service` says that `--service` means something to it."""

    def __init__(self, *args: Any, for_service: bool = False, **kwargs: Any) -> None:
        """Like click's."""
        super().__init__(*args, **kwargs)
        self._for_service = for_service

    def invoke(self, ctx: click.Context) -> Any:
        """Like click's. Raises: UsageError for a service that would be ignored."""
        if settings_of(ctx).service and not self._for_service:
            name = ctx.command_path.partition(" ")[2]
            raise click.UsageError(f"{name} is not about one service: leave out --service", ctx)
        return super().invoke(ctx)


class _NoCommand(click.UsageError):
    """A group was named and no command of it; the help is the answer."""

    def show(self, file: IO[Any] | None = None) -> None:
        if self.ctx is not None:
            click.echo(self.ctx.get_help(), file=file, err=True)


class Group(_WithGlobals, click.Group):
    """A group of commands."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Like click's, and the same in all its versions when there are no arguments. Raises: UsageError."""
        if not args and not ctx.resilient_parsing:
            raise _NoCommand("a command is missing", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, and the same in all its versions for a name that is not there. Raises: UsageError."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            self._unknown(ctx, name)
        return super().resolve_command(ctx, args)

    def _unknown(self, ctx: click.Context, name: str) -> NoReturn:
        raise click.UsageError(f"No such command: {name!r}{_meant(name, self.list_commands(ctx))}", ctx)


class LazyGroup(Group):
    """A group whose commands are loaded when they are asked for; `places` maps a name to its module, in order."""

    def __init__(self, *args: Any, places: dict[str, str], **kwargs: Any) -> None:
        """Remember where the commands are."""
        super().__init__(*args, **kwargs)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, in the order in which they are explained."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load a command's module and give the command."""
        if cmd_name not in self._places:
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(self._places[cmd_name]), cmd_name)
        return command
