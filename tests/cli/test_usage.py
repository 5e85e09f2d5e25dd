import json

import pytest

import lbswitch
from tests.cli.conftest import Run

COMMANDS = [
    [], ["green"], ["blue"], ["rollback"], ["status"], ["history"], ["show"], ["freeze"], ["release"], ["check"],
    ["render"], ["balancer"], ["balancer", "start"], ["balancer", "stop"], ["balancer", "restart"],
    ["balancer", "status"], ["agent"], ["config"], ["config", "schema"], ["completion"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_the_global_options(run: Run, command: list[str], flag: str):
    ran = run(*command, flag)
    assert (ran.code, ran.err) == (0, "")
    for option in ("--config", "--socket", "--url", "--json", "--service", "--version"):
        assert option in ran.out


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
        ["green", "--monitor", "5"],
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
