import json
import re

import pytest

import lbswitch
from tests.cli.conftest import Run

COMMANDS = [
    [], ["green"], ["blue"], ["rollback"], ["status"], ["history"], ["show"], ["freeze"], ["release"], ["check"],
    ["apply"], ["render"], ["balancer"], ["balancer", "start"], ["balancer", "stop"], ["balancer", "restart"],
    ["balancer", "status"], ["agent"], ["doctor"], ["templates"], ["templates", "list"], ["templates", "show"],
    ["templates", "diff"], ["templates", "copy"], ["config"], ["config", "schema"], ["completion"],
    ["snapshots"], ["snapshots", "show"], ["restore"], ["init"], ["uninstall"], ["drain"],
    ["alerts"], ["alerts", "test"], ["alerts", "list"], ["monitor"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_the_global_options(run: Run, command: list[str], flag: str):
    ran = run(*command, flag)
    assert (ran.code, ran.err) == (0, "")
    for option in ("--config", "--socket", "--url", "--json", "--service", "--version"):
        assert option in ran.out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_keeps_its_examples_on_lines_of_their_own(run: Run, command: list[str]):
    """Nothing of the markup that does so is left."""
    out = run(*command, "--help").out
    assert "\\b" not in out
    assert "\b" not in out
    examples = re.search(r"^  Examples?:\n((?:    .+\n)+)", out, re.MULTILINE)
    assert examples, out
    assert all(line.startswith(" ".join(["    lbswitch", *command])[:12]) for line in examples[1].splitlines())
    assert " ".join(["    lbswitch", *command]) in out


def test_the_list_of_commands_is_complete(run: Run):
    for group in ([], ["balancer"], ["templates"], ["config"], ["alerts"]):
        listed = run(*group, "--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
        names = [line.split()[0] for line in listed.splitlines() if line[2] != " "]
        assert {command[-1] for command in COMMANDS if command and command[:-1] == group} == set(names)


def test_the_main_help_names_commands_and_exit_codes(run: Run):
    out = run("--help").out
    for command in COMMANDS[1:]:
        assert command[0] in out
    for code in ("0    done", "3    refused", "4    failed", "6    the agent", "7    conflict", "8    not allowed"):
        assert code in out


@pytest.mark.parametrize("arguments", [["--version"], ["green", "--version"], ["balancer", "start", "--version"]])
def test_the_version_is_said_anywhere(run: Run, arguments: list[str]):
    assert run(*arguments) == (0, f"lbswitch {lbswitch.__version__}\n", "")
    assert json.loads(run(*arguments, "--json").out) == {"version": lbswitch.__version__}


@pytest.mark.parametrize(
    "arguments",
    [
        ["teal"],
        ["green", "--weight", "101"],
        ["green", "--weight", "-1"],
        ["green", "--expect", "teal"],
        ["green", "extra"],
        ["green", "--monitor", "0"],
        ["green", "--monitor", "soon"],
        ["green", "--monitor", "5", "--dry-run"],
        ["green", "--monitor", "5", "--all"],
        ["green", "--steps", "1,10", "--all"],
        ["green", "--steps", "1,10", "--weight", "10"],
        ["green", "--steps", "10,1"],
        ["green", "--steps", "1,x"],
        ["green", "--steps", "0,50"],
        ["green", "--steps", ""],
        ["green", "--every", "5s"],
        ["green", "--steps", "1,10", "--every", "60"],
        ["green", "--steps", "1,10", "--every", "0s"],
        ["monitor"],
        ["monitor", "--duration", "0"],
        ["monitor", "--duration", "25h"],
        ["monitor", "--duration", "nan"],
        ["monitor", "--duration", "-5"],
        ["monitor", "--duration", "5", "--auto-rollback"],
        ["show"],
        ["show", "x"],
        ["history", "-n", "0"],
        ["status", "--interval", "0"],
        ["status", "--interval", "nan"],
        ["status", "--service", ""],
        ["green", "--socket="],
        ["completion", "csh"],
        ["balancer"],
        ["balancer", "kick"],
        ["agent", "--log-level", "loud"],
        ["check", "--url", "http://127.0.0.1:1"],
        ["render", "--url", "http://127.0.0.1:1"],
        ["balancer", "status", "--url", "http://127.0.0.1:1"],
        ["agent", "--url", "http://127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2_and_with_json_one_document(run: Run, arguments: list[str]):
    plain = run(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err
    ran = run(*arguments, "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["exit_code"] == 2


def test_no_command_at_all_is_a_usage_error_that_shows_the_help(run: Run):
    ran = run()
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_the_schema_is_json(run: Run):
    ran = run("config", "schema")
    assert (ran.code, ran.err) == (0, "")
    assert "services" in json.loads(ran.out)["properties"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["greeen"], "'green'"),
        (["statsu"], "'status'"),
        (["balancer", "strat"], "'start'"),
        (["green", "--wieght", "5"], "'--weight'"),
        (["rollback", "--reson", "x"], "'--reason'"),
    ],
    ids=" ".join,
)
def test_a_typo_is_told_what_was_probably_meant(run: Run, arguments: list[str], meant: str):
    ran = run(*arguments)
    assert ran.code == 2
    assert f"did you mean {meant}" in ran.err


@pytest.mark.parametrize("arguments", [["rollback", "--all"], ["xyzzy"], ["status", "-x"]], ids=" ".join)
def test_what_is_not_alike_is_not_suggested(run: Run, arguments: list[str]):
    ran = run(*arguments)
    assert ran.code == 2
    assert f"{arguments[-1]}" in ran.err
    assert "did you mean" not in ran.err.lower()
    assert "--url" not in ran.err


@pytest.mark.parametrize("weight", ["abc", "101", "-1", "5.5", "00001000", "1" * 5000])
def test_a_weight_that_is_none_is_told_what_one_is(run: Run, weight: str):
    assert "is not a whole number of 0-100" in run("green", "--weight", weight).err


@pytest.mark.parametrize(
    "command",
    [
        ["check"], ["render"], ["agent"], ["show", "17"], ["config", "schema"], ["completion", "bash"],
        *(["balancer", name] for name in ("start", "stop", "restart", "status")),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_service_that_would_be_ignored_is_refused(run: Run, command: list[str]):
    """Before anything is read or done, and wherever the option stands."""
    for arguments in (["-s", "nope", *command], [*command, "--service", "nope"]):
        ran = run(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert "is not about one service: leave out --service" in ran.err
