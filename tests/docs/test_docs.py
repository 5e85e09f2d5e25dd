"""The documentation names what there is."""

import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from lbswitch.cli.main import cli
from lbswitch.core.config import AgentConfig, BalancerConfig, ServiceConfig
from lbswitch.core.source_config import SOURCE_KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
POOLS = ("blue", "green")


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [
            kind
            for kind in (field.annotation, *typing.get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if inner and name not in POOLS:
            yield from keys(inner[0], f"{prefix}{name}.")
        elif not prefix.startswith("criteria."):
            yield f"{prefix}{name}"


@pytest.mark.parametrize(
    "key", [*keys(AgentConfig, "agent."), *keys(BalancerConfig, "balancer."), *keys(ServiceConfig)]
)
def test_every_setting_is_documented(key: str) -> None:
    """docs/configuration.md has it, in the form in which people search for it."""
    assert f"`{key}`" in (DOCS / "configuration.md").read_text()


@pytest.mark.parametrize("key", sorted({key for model in SOURCE_KINDS.values() for key in model.model_fields}))
def test_every_setting_of_a_source_is_documented(key: str) -> None:
    """docs/sources.md has it."""
    assert f"| `{key}` |" in (DOCS / "sources.md").read_text()


@pytest.mark.parametrize("name", sorted(cli.list_commands(None)))
def test_every_command_is_documented(name: str) -> None:
    """docs/cli.md has it."""
    assert name in (DOCS / "cli.md").read_text()


@pytest.mark.parametrize("document", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Relative links point at files that exist."""
    for part in document.read_text().split("](")[1:]:
        target = part.partition(")")[0].partition("#")[0]
        if target and "://" not in target:
            assert (document.parent / target).exists(), target
