"""`templates`: the stock templates and the operator's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbswitch.cli.options import Group, Settings, pass_settings
from lbswitch.cli.output import Cell, complain, has_color, paragraph, printable, say, say_json, table
from lbswitch.errors import InvalidRequest

if TYPE_CHECKING:
    from lbswitch.overrides import Collection, Template

_Call = Callable[..., Any]


def _kind(command: _Call) -> _Call:
    """Add --kind."""
    option = click.option(
        "--kind",
        type=click.Choice(("nginx", "haproxy")),
        help="Those of nginx or HAProxy; by default those of the configuration's balancer.",
    )
    return option(command)


@click.group(cls=Group, short_help="The templates of the rendered files: list, show, diff, copy.")
def templates() -> None:
    r"""The Jinja templates that nginx's or HAProxy's files are rendered from.

    Stock templates come with lbswitch. A file of the same name in the directory that balancer.templates names comes
    before it, in KIND/ or beside. docs/templates.md explains the variables. Needs no agent, and without a
    configuration file shows the stock templates of both.

    \b
    Examples:
      lbswitch templates list
      lbswitch templates copy nginx.conf.j2      begin an override
      lbswitch templates diff                    what yours change
    """


@templates.command("list", short_help="Which templates are used, and whose.")
@_kind
@pass_settings
def list_templates(settings: Settings, kind: str | None) -> None:
    r"""List every template: stock, overridden, or the operator's own; with the file that is used.

    An override that was begun with `templates copy` knows its stock template: when a newer lbswitch brings
    another one, the list says so, and `templates diff` shows what to look at.

    \b
    Examples:
      lbswitch templates list
      lbswitch templates list --kind haproxy --json
    """
    found = _collection(settings, kind)
    if settings.json:
        directory = None if found.directory is None else str(found.directory)
        say_json({"directory": directory, "templates": [_document(one) for one in found.templates]})
        return
    rows = [[Cell(one.name), _state_cell(one), Cell(printable(one.path))] for one in found.templates]
    for line in table(("NAME", "STATE", "FILE"), rows, color=has_color()):
        say(line)
    for one in found.templates:
        if note := _note(one):
            complain(note)


def _state_cell(template: Template) -> Cell:
    older = template.base is not None and template.base.value == "older"
    return Cell(f"{template.state}, older" if older else str(template.state), "yellow" if older else "")


def _note(template: Template) -> str:
    if template.base is None or template.base.value != "older":
        return ""
    return (
        f"note: {template.name}: your template was made from the one of lbswitch {template.made_with}, which is not "
        f"the stock template any more; see what differs: lbswitch templates diff {template.name}"
    )


def _document(template: Template) -> dict[str, Any]:
    return {
        "name": template.name,
        "kind": template.kind,
        "state": str(template.state),
        "path": str(template.path),
        "stock": None if template.stock is None else str(template.stock),
        "override": None if template.override is None else str(template.override),
        "base": None if template.base is None else str(template.base),
        "made_with": template.made_with,
    }


@templates.command(short_help="Print a template.")
@click.argument("name")
@click.option("--stock", is_flag=True, help="The one that comes with lbswitch, also when it is overridden.")
@_kind
@pass_settings
def show(settings: Settings, name: str, stock: bool, kind: str | None) -> None:
    r"""Print the template that is used. NAME is as in the list; KIND/ and .j2 may be left out.

    \b
    Examples:
      lbswitch templates show nginx.conf.j2
      lbswitch templates show haproxy/http.cfg --stock
    """
    from lbswitch import overrides

    template = _collection(settings, kind).find(name)
    if stock and template.stock is None:
        raise InvalidRequest(f"{template.name} is your own: there is no stock template of that name")
    path = template.stock if stock and template.stock else template.path
    text = overrides.read(path)
    if settings.json:
        say_json({**_document(template), "path": str(path), "text": text})
    else:
        say(text.rstrip("\n"))


@templates.command(short_help="What overrides change of the stock templates.")
@click.argument("name", required=False)
@_kind
@pass_settings
def diff(settings: Settings, name: str | None, kind: str | None) -> None:
    r"""Show what an override, or all of them, changes of the stock template, as a unified diff.

    Without a difference the output is empty; the exit code is 0 either way.

    \b
    Examples:
      lbswitch templates diff
      lbswitch templates diff nginx.conf.j2
    """
    from lbswitch import overrides

    found = _collection(settings, kind)
    chosen = [found.find(name)] if name else list(found.templates)
    diffs = {one.name: text for one in chosen if (text := overrides.diff(one))}
    if settings.json:
        say_json({"diffs": diffs, "templates": [_document(one) for one in chosen]})
        return
    for text in diffs.values():
        say(paragraph(text))
    for one in chosen:
        if note := _note(one):
            complain(note)
    if not diffs:
        complain(_nothing(chosen))


def _nothing(chosen: list[Template]) -> str:
    made = [one.name for one in chosen if one.override is not None]
    if not made:
        what = chosen[0].name if len(chosen) == 1 else "every template"
        return f"{what} is the stock one"
    return f"nothing differs from the stock templates in {', '.join(made)}"


@templates.command(short_help="Begin an override with a copy of the stock template.")
@click.argument("name")
@click.option("--to", metavar="DIR", type=click.Path(), help="Directory; by default that of balancer.templates.")
@_kind
@pass_settings
def copy(settings: Settings, name: str, to: str | None, kind: str | None) -> None:
    r"""Copy a stock template to DIR/KIND/NAME, with a comment that remembers which one it was.

    It renders to the same until it is edited. A running agent applies an edit by itself, once it renders and the
    balancer's checker accepts the result. A file that is there is left alone.

    \b
    Examples:
      lbswitch templates copy nginx.conf.j2
      lbswitch templates copy haproxy/http.cfg.j2 --to /etc/lbswitch/templates
    """
    from lbswitch import overrides

    found = _collection(settings, kind)
    directory = Path(to).absolute() if to else found.directory
    if directory is None:
        raise InvalidRequest(
            "balancer.templates is not set: set it to a directory, such as /etc/lbswitch/templates, or name one with "
            "--to"
        )
    template = found.find(name)
    path = overrides.copy(template, directory)
    unused = directory != found.directory
    if settings.json:
        say_json({"name": template.name, "path": str(path), "used": not unused})
        return
    say(f"{template.name} was copied to {path}")
    if unused:
        complain(f"note: it is used when lbswitch.yaml says  balancer: {{templates: {directory}}}")


def _collection(settings: Settings, kind: str | None) -> Collection:
    settings.only_local("templates")
    from lbswitch import overrides

    return overrides.of(Path(settings.config_path), kind)
