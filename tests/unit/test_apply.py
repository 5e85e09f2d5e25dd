"""Reading configuration and templates again: what is applied, refused, held back, and said."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.edits import Applied, Edits, refuse_what_needs_a_restart
from lbswitch.errors import ConfigError, LbswitchError, NeedsForce, Problem
from lbswitch.events import Event, Events
from lbswitch.ports import Balancer, Difference
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from tests.unit.fakes import FakeBalancer, config_of


def changed(config: Config, **sections: Any) -> Config:
    """The same configuration with other values, such as `agent={"on_drift": "repair"}`; None removes a service."""
    document = config.model_dump(mode="json", exclude_unset=True)
    for name, values in sections.items():
        document.setdefault(name, {}).update(values)
    document["services"] = {name: value for name, value in document["services"].items() if value is not None}
    return Config.model_validate(document)


class Desk:
    """Edits on fakes with a real store; `file` is what the configuration file says, or what is wrong with it."""

    def __init__(self, directory: Path) -> None:
        self.balancer, self.events = FakeBalancer(), Events(time.time)
        self.said: list[Event] = []
        self.events.listen(self.said.append)
        self.config = config_of()
        self.file: Config | LbswitchError = self.config
        self.store = SqliteStore(directory / "lbswitch.db")
        self.serving = Serving(self.config, self.balancer, self.events)
        self.serving.start(Intent({name: ServiceIntent(Route(Color.BLUE), 1) for name in self.config.services}, 1))
        self.balancer.reloads = 0
        self.said.clear()
        self.told: list[Config] = []
        self.loads = 0
        self.path = directory / "lbswitch.yaml"
        self.edits = Edits(
            self.path, self.serving, self.store, self.events, self.load, self.told.append, asyncio.to_thread
        )

    def load(self, _path: Path) -> tuple[Config, Balancer]:
        self.loads += 1
        if isinstance(self.file, LbswitchError):
            raise self.file
        return self.file, self.balancer

    def apply(self, **options: bool) -> Applied:
        return asyncio.run(self.edits.apply(**options))

    def noticed(self) -> Applied:
        """What happens when an edit is noticed."""
        return self.apply(asked=False)

    def errors(self) -> list[str]:
        return [event.message for event in self.said if event.level == "error"]

    def types(self) -> list[str]:
        return [event.type for event in self.said]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


BROKEN = ConfigError("lbswitch.yaml", [Problem("is 'tomorrow', which is not a duration", "agent.wait.min", 3)])


def test_nothing_to_do(desk: Desk) -> None:
    """Nothing is installed, reloaded or moved."""
    commits = len(desk.balancer.commits)
    applied = desk.apply()
    assert (applied.configuration, applied.reloaded, applied.error) == ("unchanged", False, None)
    assert (desk.balancer.reloads, len(desk.balancer.commits), desk.told) == (0, commits, [])


def test_a_changed_configuration_is_served(desk: Desk) -> None:
    """With one reload; the store and the rest of the agent know it."""
    desk.file = changed(desk.config, services={"blog": None})
    applied = desk.noticed()
    assert (applied.configuration, applied.reloaded, applied.revision) == ("applied", True, desk.balancer.installed())
    assert (desk.told, list(desk.store.services()), desk.balancer.reloads) == ([desk.file], ["shop"], 1)


def test_what_changes_no_byte_needs_no_reload(desk: Desk) -> None:
    """How often checks are made is nothing that is rendered."""
    desk.file = changed(desk.config, agent={"on_drift": "repair"})
    applied = desk.noticed()
    assert (applied.configuration, applied.reloaded, desk.balancer.reloads) == ("applied", False, 0)
    assert desk.serving.config.agent.on_drift == "repair"


def test_an_invalid_configuration_is_said_once_and_mended(desk: Desk) -> None:
    """Noticed again and again: one event; the last good one serves. Put back as it was: over, and nothing to do."""
    installed = desk.balancer.installed()
    desk.file = BROKEN
    for _ in range(3):
        assert desk.noticed().configuration == "refused"
    assert desk.errors() == [f"{BROKEN}; the running configuration stays"]
    assert (desk.edits.config_error, desk.balancer.installed()) == (str(BROKEN), installed)
    desk.file = desk.config
    assert desk.noticed().configuration == "unchanged"
    assert (desk.edits.config_error, desk.types()[-1]) == (None, "configuration-mended")


def test_a_refused_template_is_said_once_and_mended(desk: Desk) -> None:
    installed = desk.balancer.installed()
    desk.balancer.template, desk.balancer.refuse = "broken", 'unknown directive "sever"'
    for _ in range(3):
        assert desk.noticed().configuration == "refused"
    assert desk.errors() == ['unknown directive "sever"']
    assert (desk.serving.files_problem, desk.balancer.installed()) == ('unknown directive "sever"', installed)
    desk.balancer.template, desk.balancer.refuse = "one", None
    assert desk.noticed().configuration == "unchanged"
    assert (desk.serving.files_problem, desk.types()[-1]) == (None, "files-mended")


@pytest.mark.parametrize("first", ["template", "configuration"])
def test_both_broken_at_once(desk: Desk, first: str) -> None:
    """Both are said; mended in either order the new configuration is served in the end."""
    wanted = changed(desk.config, services={"blog": None})
    desk.file, desk.balancer.template, desk.balancer.refuse = BROKEN, "broken", "no"
    assert [str(error) for error in desk.noticed().errors] == [str(BROKEN), "no"]
    for mended in (first, "configuration" if first == "template" else "template"):
        assert desk.serving.config is desk.config
        if mended == "template":
            desk.balancer.template, desk.balancer.refuse = "one", None
        else:
            desk.file = wanted
        desk.noticed()
    assert (desk.serving.config, desk.edits.config_error, desk.serving.files_problem) == (wanted, None, None)


def test_a_valid_configuration_that_the_template_spoils_is_said_once(desk: Desk) -> None:
    """The same words are one event, though they are true of the configuration and of the files."""
    desk.file = changed(desk.config, services={"blog": None})
    desk.balancer.template, desk.balancer.refuse = "broken", "no"
    assert len(desk.noticed().errors) == 1
    assert len(desk.errors()) == 1
    assert desk.serving.files_problem == "no"


def test_a_configuration_that_is_not_seen_is_put_back(desk: Desk) -> None:
    """Also when the template was broken meanwhile: what was installed before needs no template."""
    installed, served = desk.balancer.installed(), desk.balancer.serves
    desk.file = changed(desk.config, services={"blog": None})

    def reload() -> None:
        desk.balancer.template, desk.balancer.refuse = "broken", "no"
        desk.balancer.running = False

    desk.balancer.reload = reload  # type: ignore[method-assign]
    applied = desk.noticed()
    assert applied.configuration == "refused"
    assert (desk.balancer.installed(), desk.serving.config) == (installed, desk.config)
    assert desk.balancer.serves.services == served.services


# -- what needs force ----------------------------------------------------------------------------------------


def test_a_service_with_clients_stays_until_a_person_says_otherwise(desk: Desk) -> None:
    """Said once, with the number and the mend; not done behind anybody's back when its clients leave."""
    desk.file, desk.balancer.clients = changed(desk.config, services={"blog": None}), {"blog": 7}
    desk.noticed()
    said = "blog would be removed, and its listener 127.0.0.1:8081 has 7 client connections now. If that is meant: "
    assert desk.edits.config_error.startswith(said)
    desk.balancer.clients = {}
    desk.serving.usage.keep([])
    desk.noticed()
    assert "blog" in desk.serving.config.services
    assert len(desk.errors()) == 1
    assert desk.apply().configuration == "applied"
    assert "blog" not in desk.serving.config.services


def test_forced(desk: Desk) -> None:
    desk.file, desk.balancer.clients = changed(desk.config, services={"blog": None}), {"blog": 7}
    refused = desk.apply()
    assert isinstance(refused.error, NeedsForce)
    assert (refused.error.exit_code, refused.error.http_status) == (3, 409)
    assert desk.apply(force=True).configuration == "applied"
    assert desk.edits.config_error is None


def test_a_service_without_clients_goes_by_itself(desk: Desk) -> None:
    """Clients of the service that stays don't matter."""
    desk.file, desk.balancer.clients = changed(desk.config, services={"blog": None}), {"shop": 7}
    assert desk.noticed().configuration == "applied"


def test_a_balancer_that_is_down_has_no_clients(desk: Desk) -> None:
    desk.file, desk.balancer.clients = changed(desk.config, services={"blog": None}), {"blog": None}
    assert desk.noticed().configuration == "refused"
    desk.balancer.running = False
    desk.balancer.why_not_started = lambda: "stopped by a person"  # type: ignore[method-assign]
    assert desk.apply().configuration == "applied"


def test_a_template_that_empties_a_pool_needs_force(desk: Desk) -> None:
    """It serves what it served; an operation that would bring it in is stopped, too."""
    installed = desk.balancer.installed()
    desk.balancer.template = "no servers"
    for _ in range(2):
        assert desk.noticed().configuration == "refused"
    (said,) = desk.errors()
    assert said == "pool shop_blue has 1 server and would have none. If that is meant: lbswitch apply --force"
    with pytest.raises(NeedsForce):
        desk.serving.changed_files(desk.serving.intent)
    assert desk.balancer.installed() == installed
    assert desk.apply(force=True).reloaded
    assert desk.noticed().configuration == "unchanged"


# -- apply's own ---------------------------------------------------------------------------------------------


def test_a_dry_run_shows_and_changes_nothing(desk: Desk) -> None:
    installed = desk.balancer.installed()
    desk.balancer.template = "two"
    rehearsed = asyncio.run(desk.edits.rehearse())
    assert (rehearsed.configuration, rehearsed.reloaded) == ("applied", True)
    assert "-one ['blog', 'shop'] [] []" in rehearsed.diff
    assert "+two ['blog', 'shop'] [] []" in rehearsed.diff
    assert rehearsed.to_json()["dry_run"] is True
    assert (desk.balancer.installed(), desk.balancer.reloads, desk.said) == (installed, 0, [])
    assert desk.apply().revision == rehearsed.revision


def test_a_dry_run_says_what_drifted_and_leaves_it(desk: Desk) -> None:
    desk.balancer.drifted = [Difference("disk", "/live", "the pointer /live is gone")]
    rehearsed = asyncio.run(desk.edits.rehearse())
    assert (rehearsed.configuration, rehearsed.differs) == ("unchanged", ("the pointer /live is gone",))
    assert desk.balancer.drifted


@pytest.mark.parametrize(("force", "configuration"), [(False, "refused"), (True, "applied")])
def test_a_dry_run_says_what_needs_force(desk: Desk, force: bool, configuration: str) -> None:
    desk.balancer.template = "no servers"
    assert asyncio.run(desk.edits.rehearse(force=force)).configuration == configuration
    assert desk.serving.files_problem is None


def test_drift_is_put_right_only_when_somebody_asks(desk: Desk) -> None:
    """An edit that is noticed is no reason."""
    repaired: list[str] = []
    desk.edits.repair = lambda: repaired.append("live.map") or ["live.map was changed"]
    desk.noticed()
    assert repaired == []
    assert desk.apply().differs == ("live.map was changed",)


def test_the_problems_of_an_answer_have_file_and_line(desk: Desk) -> None:
    desk.file, desk.balancer.template, desk.balancer.refuse = BROKEN, "broken", "no"
    problems = desk.apply().to_json()["problems"]
    assert problems[0]["line"] == 3
    assert problems[1] == {"file": "", "line": 0, "path": "", "message": "no"}


@pytest.mark.parametrize(
    ("sections", "needs"),
    [
        ({"agent": {"wait": {"min": "100ms"}, "on_drift": "repair", "snapshots": {"keep": 20}}}, None),
        ({"balancer": {"workers": 2}}, None),
        ({"agent": {"socket": "/run/other.sock"}}, "agent.socket"),
        ({"agent": {"state_dir": "/srv/other"}}, "agent.state_dir"),
        ({"agent": {"listen": "127.0.0.1:9180"}}, "agent.listen"),
        ({"balancer": {"kind": "haproxy"}}, "balancer.kind"),
        ({"balancer": {"binary": "/opt/nginx"}}, "balancer.binary"),
        ({"balancer": {"managed": False, "config": ["/etc/n.conf"], "output_dir": "/etc/l"}}, "balancer.managed"),
    ],
)
def test_what_needs_a_restart(sections: dict[str, Any], needs: str | None) -> None:
    """Sockets, state and the kind of balancer; and nothing else."""
    before = config_of()
    after = changed(before, **sections)
    if needs is None:
        refuse_what_needs_a_restart(before, after)
        return
    with pytest.raises(ConfigError, match=needs):
        refuse_what_needs_a_restart(before, after)


# -- noticing ------------------------------------------------------------------------------------------------


async def _until(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.005)


async def _running(desk: Desk, script: Callable[[], Any]) -> None:
    """Run the loop beside the script, after it has read everything once."""
    loop = asyncio.create_task(desk.edits.run())
    try:
        await _until(lambda: desk.loads == 1, "everything is read once")
        await script()
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


def test_many_edits_in_a_row_are_one(desk: Desk) -> None:
    """Twenty writes at once are read once, when they have settled."""
    desk.path.write_text("0")

    async def script() -> None:
        for number in range(20):
            desk.path.write_text(f"{number}")
        await _until(lambda: "edits-without-effect" in desk.types(), "they were read")
        assert desk.loads == 2

    asyncio.run(_running(desk, script))


def test_edits_without_end_are_read_all_the_same(desk: Desk) -> None:
    """Never quiet for wait.min, so it is read after wait.max."""
    desk.serving.config = changed(desk.config, agent={"wait": {"min": "1500ms", "max": "1500ms"}})
    desk.file = desk.serving.config
    desk.path.write_text("0")

    async def script() -> None:
        began = time.monotonic()
        while desk.loads == 1:
            desk.path.write_text(f"{time.monotonic()}")
            await asyncio.sleep(0.01)
            assert time.monotonic() < began + 10.0
        assert time.monotonic() - began > 1.0

    asyncio.run(_running(desk, script))


def test_own_files_are_handed_on(desk: Desk, tmp_path: Path) -> None:
    """What lbswitch wrote itself is no edit: nothing is rendered for it."""
    state = tmp_path / "state"
    state.mkdir()
    desk.serving.config = desk.file = changed(desk.config, agent={"state_dir": str(state)})
    desk.balancer.watched = lambda: frozenset([state])  # type: ignore[method-assign]
    told: list[str] = []
    desk.edits.own_files_changed = lambda: told.append("own")

    async def script() -> None:
        (state / "live").symlink_to("gen-000001")
        await _until(lambda: told, "it is handed on")
        assert desk.loads == 1

    asyncio.run(_running(desk, script))
