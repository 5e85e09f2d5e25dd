"""A configuration is read whole or refused whole, and then with everything that is wrong with it."""

import contextlib
import datetime
import json
import random
from textwrap import dedent

import jsonschema
import pytest

from lbswitch.core.config import AgentConfig, BalancerConfig, Config, ServiceConfig, Switching
from lbswitch.core.config_text import notes, parse, schema
from lbswitch.core.model import Color
from lbswitch.core.yaml_tree import read_tree
from lbswitch.errors import ConfigError

CONTRACT = """\
agent:
  state_dir: /var/lib/lbswitch          # pointer, journal, snapshots; must survive a reboot
  socket: /run/lbswitch/agent.sock      # local API, mode 0660
  listen: 127.0.0.1:9180                # optional TCP API; beyond loopback it requires tls and tokens
balancer:
  kind: nginx                           # nginx | haproxy
  managed: true                         # lbswitch writes the whole main config and starts it
services:
  shop:
    bind: 127.0.0.1:8080
    blue:  {servers: [127.0.0.1:9101]}
    green: {servers: [127.0.0.1:9102]}
    initial: blue
    switching: pointer                  # pointer | reload (nginx); map | reload (haproxy)
    health: {path: /health, interval: 1s, timeout: 500ms, rise: 2, fall: 2, min_healthy: 1}
    failover: {enabled: true, cooldown: 30s, max_per_hour: 3}
    bake: {duration: 5m, shield: true, on_breach: rollback}   # rollback | freeze | alert
    criteria:
      error_rate:           {threshold: 5, window: 60s}        # 5xx per second
      error_ratio:          {threshold: 0.05, window: 10s, min_samples: 20}
      response_time:        {threshold: 500, window: 120s, quantile: 0.95}     # ms
      database_connections: {threshold: 0.9, window: 30s, source: db}          # fraction of the maximum
      health_check:         {threshold: 1, window: 10s}        # failed checks
    policy: {trigger: any, alert_threshold: 0.8}               # any | confidence
"""

SOURCES = """\
sources:
  db: {kind: postgres, dsn_file: /etc/lbswitch/db.dsn, interval: 5s, timeout: 2s}
  p99: {kind: prometheus, url: 'http://127.0.0.1:9090', query: 'sum(rate(x[1m]))', stale_after: 1m}
  queue: {kind: http, url: 'https://app.example/stats?all=1', jmespath: 'queues[0].length', token_file: /etc/t}
  lag: {kind: command, command: [/usr/local/bin/lag, --seconds]}
  cpu: {kind: host, metric: cpu}
"""


def minimal(*, agent="", balancer="kind: nginx", **services: str) -> str:
    """A file of one line a section; each service is the inside of a flow mapping, with two servers of its own."""
    lines = [f"agent: {{{agent}}}", f"balancer: {{{balancer}}}", "services:"]
    for number, (name, inside) in enumerate((services or {"shop": ""}).items()):
        parts = [] if "bind:" in inside else [f"bind: '127.0.0.1:{8000 + number}'"]
        for color, port in (("blue", 9100), ("green", 9200)):
            parts += [] if f"{color}:" in inside else [f"{color}: {{servers: ['127.0.0.1:{port + number}']}}"]
        lines.append(f"  {name}: {{{', '.join([*parts, *([inside] if inside else [])])}}}")
    return "\n".join(lines) + "\n"


def problems_of(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "lbswitch.yaml")
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


def only_problem(text: str) -> tuple[int, str, str]:
    found = problems_of(text)
    assert len(found) == 1, found
    return found[0]


class TestReading:
    def test_contract(self):
        """The example that users are shown is read, and means what it says."""
        config = parse(CONTRACT, "lbswitch.yaml")
        shop = config.services["shop"]
        assert config.agent.listen == "127.0.0.1:9180"
        assert (shop.health.interval, shop.health.timeout, shop.bake.duration) == (1.0, 0.5, 300.0)
        assert shop.pool(Color.GREEN).servers == ("127.0.0.1:9102",)
        assert config.switching("shop") is Switching.POINTER

    def test_least(self):
        """A balancer, a bind address and two pools are enough; the rest has defaults."""
        config = parse(minimal(), "lbswitch.yaml")
        assert config.agent == AgentConfig()
        assert config.services["shop"].health.expect == ((200, 399),)

    def test_defaults_are_valid(self):
        """Every default would be accepted if it were written into the file."""
        config = parse(minimal(), "lbswitch.yaml")
        assert parse(config.model_dump_json(), "again") == config

    def test_round_trip(self):
        """What was read, written as text, reads back the same."""
        text = minimal(
            shop="health: {expect: [200-299, 401], interval: 1.5s, body: 'a: \"b\"'}, weights: {sticky: address}"
        )
        for config in (parse(CONTRACT + SOURCES, "a"), parse(text, "b")):
            assert parse(config.model_dump_json(), "again") == config
            assert parse(config.model_dump_json(exclude_unset=True), "again") == config

    def test_byte_order_mark_and_line_ends(self):
        """Files from other systems are read."""
        assert parse("\ufeff" + CONTRACT.replace("\n", "\r\n"), "a") == parse(CONTRACT, "b")

    def test_environment_is_not_expanded(self):
        """`${...}` is text; where it can't be, it is refused and not replaced."""
        assert only_problem(minimal(agent="state_dir: '${HOME}/x'"))[1] == "agent.state_dir"

    def test_anchors_and_merges(self):
        """Services may share settings; what is written in the service itself comes first."""
        text = """\
            balancer: {kind: nginx}
            services:
              a: &a
                bind: 127.0.0.1:1
                blue: &pool {servers: [127.0.0.1:2]}
                green: {servers: [127.0.0.1:3]}
                health: &health {rise: 7}
              b:
                <<: *a
                bind: 127.0.0.1:4
                health: {<<: [{fall: 9}, *health, {fall: 1}], path: /up}
            """
        services = parse(dedent(text), "a").services
        assert services["b"].blue == services["a"].blue
        assert services["b"].bind == "127.0.0.1:4"
        assert (services["b"].health.rise, services["b"].health.fall, services["b"].health.path) == (7, 9, "/up")

    def test_problem_in_what_was_merged(self):
        """The line is the one to change, also when the value came by an alias."""
        text = """\
            balancer: {kind: nginx}
            services:
              a: &a
                bind: 127.0.0.1:1
                blue: {servers: [127.0.0.1:2]}
                green: {servers: [127.0.0.1:3]}
                initial: red
              b: {<<: *a, bind: "127.0.0.1:4"}
            """
        found = [(line, path) for line, path, _ in problems_of(dedent(text))]
        assert found == [(7, "services.a.initial"), (7, "services.b.initial")]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None)),
        *(("on", "on"), ("yes", "yes"), ("no", "no"), ("off", "off"), ("y", "y"), ("tRUE", "tRUE")),
        *(("12:30", "12:30"), ("190:20:30", "190:20:30"), ("2026-01-01", "2026-01-01"), ("=", "=")),
        *(("0o17", "0o17"), ("017", "017"), ("0x1F", "0x1F"), ("0b1", "0b1"), ("1_000", "1_000"), ("1,000", "1,000")),
        *(
            ("0", 0),
            ("-0", 0),
            ("+5", 5),
            ("-17", -17),
            ("1e3", 1000),
            ("1.0", 1),
            ("1.5", 1.5),
            (".5", 0.5),
            ("5.", 5),
        ),
        *((".inf", ".inf"), (".nan", ".nan"), ("1e", "1e"), ("e3", "e3"), ("1.2.3", "1.2.3"), ("-", "-"), (".", ".")),
        *(("'1'", "1"), ('"true"', "true"), ("!!str 1", "1"), ("! 1", "1"), ("١", "١"), ("1e400", float("inf"))),
    ],
)
def test_scalars(written, value):
    """Only true and false, numbers and null are not text; nobody's `on`, time or date is turned into something else."""
    if written == "-":
        written = "'-'"
    root, problems = read_tree(f"key: {written}\n")
    found = root.plain()["key"]
    assert (found, type(found), problems) == (value, type(value), [])
    assert not isinstance(found, datetime.date)


class TestProblems:
    def test_a_refused_server_is_one_problem(self):
        """It is not also told that the list, without it, is empty; a list that is empty is."""
        text = minimal(a="blue: {servers: [nonsense]}, green: {servers: []}")
        assert [path for _, path, _ in problems_of(text)] == [
            "services.a.blue.servers.0",
            "services.a.green.servers",
        ]

    def test_a_body_that_can_never_come(self):
        """HEAD has no body to look into."""
        text = minimal(a="health: {method: HEAD, body: ok}")
        assert only_problem(text)[1] == "services.a.health.body"

    def test_all_at_once_in_file_order(self):
        """An error in one section hides none in another; each has its line, its path and what is allowed."""
        text = """\
            agent:
              state_dir: relative
            balancer:
              kind: apache
            services:
              shop:
                bind: 8080
                blue: {servers: [127.0.0.1:9101]}
                green: {servers: [127.0.0.1:9102, "a;b:80"]}
                initial: red
                health:
                  intervall: 1s
                  timeout: 1.5
              cart:
                bind: 127.0.0.1:8081
                blue: {servers: [127.0.0.1:9101]}
            extra: 1
            """
        assert problems_of(dedent(text)) == [
            (
                2,
                "agent.state_dir",
                "is 'relative', which is not an absolute path made of letters, digits and _@+=:./~-",
            ),
            (4, "balancer.kind", "is 'apache', which is none of nginx, haproxy"),
            (
                7,
                "services.shop.bind",
                "is 8080, which is not an address: write host:port with a port of 1-65535, [ipv6]:port or unix:/path",
            ),
            (
                9,
                "services.shop.green.servers.1",
                "is 'a;b:80', which is not an address: the host is neither a host name nor an IP address",
            ),
            (10, "services.shop.initial", "is 'red', which is none of blue, green"),
            (
                12,
                "services.shop.health.intervall",
                "unknown key 'intervall': did you mean 'interval'? known: type, path, method, host, port, expect, "
                "body, tls, command, interval, timeout, jitter, rise, fall, min_healthy, eject_after",
            ),
            (
                13,
                "services.shop.health.timeout",
                "is 1.5, which is not a duration: write a number and a unit, such as 250ms, 1s, 5m, 2h or 30d",
            ),
            (14, "services.cart.green", "is missing. A pool, such as {servers: [127.0.0.1:9102]}."),
            (17, "extra", "unknown key 'extra': known: agent, balancer, services, alerts, sources"),
        ]

    def test_as_text(self):
        """One line each, as editors and people expect."""
        with pytest.raises(ConfigError) as caught:
            parse(minimal(shop="initial: red", agent="listen: 1"), "/etc/x.yaml")
        first, second = str(caught.value).splitlines()
        assert first.startswith("/etc/x.yaml:1: agent.listen: is 1, which is not an address")
        assert second == "/etc/x.yaml:4: services.shop.initial: is 'red', which is none of blue, green"

    @pytest.mark.parametrize(
        ("inside", "path", "words"),
        [
            ("health: {path: 5}", "health.path", "is 5, which is not a path that begins with /"),
            ("health: {interval: 0s}", "health.interval", "is '0s', which is shorter than 1ms"),
            ("health: {interval: true}", "health.interval", "is true, which is not a duration"),
            ("health: {interval: ''}", "health.interval", "is '', which is not a duration"),
            ("health: {interval: }", "health.interval", "is empty, which is not a duration"),
            ("health: {rise: yes}", "health.rise", "is 'yes', which is not a whole number"),
            ("health: {rise: true}", "health.rise", "is true, which is not a whole number"),
            ("health: {rise: '2'}", "health.rise", "is '2', which is not a whole number"),
            ("health: {rise: 1.5}", "health.rise", "is 1.5, which is not a whole number"),
            ("health: {rise: 0}", "health.rise", "is 0, which is less than 1"),
            ("health: {rise: 1e3}", "health.rise", "is 1e3, which is more than 100"),
            ("health: {rise: 1e400}", "health.rise", "is 1e400, which is not a whole number"),
            ("health: {rise: 99999999999999999999999}", "health.rise", "is 99999999999999999999999, which is "),
            ("health: {tls: on}", "health.tls", "is 'on', which is neither true nor false"),
            ("health: {tls: 1}", "health.tls", "is 1, which is neither true nor false"),
            ("health: {port: 0}", "health.port", "is 0, which is less than 1"),
            ("health: {method: POST}", "health.method", "is 'POST', which is none of GET, HEAD, OPTIONS"),
            ("health: {expect: 600}", "health.expect", "holds 600, which is not a status or a range of 100-599"),
            ("health: {expect: 300-200}", "health.expect", "holds '300-200', which is not a status"),
            ("health: {expect: [true]}", "health.expect", "holds True, which is not a status"),
            ("health: {expect: [²00]}", "health.expect", "which is not a status"),
            ("health: {expect: []}", "health.expect", "holds no status, so that nothing could pass"),
            ("health: {body: ''}", "health.body", "is empty"),
            ("health: {body: 200}", "health.body", "is 200, which is not text: put it in quotes"),
            ("health: {jitter: .6}", "health.jitter", "is .6, which is more than 0.5"),
            ("health: {type: exec}", "health.type", "is 'exec', which is none of http, tcp, command"),
            ("health: {type: command}", "health.type", "is 'command', but there is no command: [...] to run"),
            ("health: {command: [a]}", "health.command", "is for type: command, but type is http"),
            ("health: {type: command, command: check}", "health.command", "is 'check', but a list is needed"),
            (
                "health: {type: command, command: [a, 5]}",
                "health.command.1",
                "is 5, which is not text: put it in quotes",
            ),
            ('health: {type: command, command: ["\\0"]}', "health.command.0", "it holds a NUL"),
            ("health: {min_healthy: 2}", "health.min_healthy", "is 2, but blue has only 1 server"),
            ("health: ", "health", "is empty, but a mapping with these keys is needed: type, path"),
            ("health: 1s", "health", "is '1s', but a mapping with these keys is needed: type, path"),
            ("health: [a]", "health", "is a list, but a mapping with these keys is needed: type, path"),
            ("blue: ['127.0.0.1:1']", "blue", "is a list, but a mapping with these keys is needed: servers"),
            ("blue: {}", "blue.servers", "is missing. Addresses, such as [127.0.0.1:9101]."),
            ("blue: {servers: []}", "blue.servers", "is empty"),
            ("blue: {servers: 'a:1'}", "blue.servers", "is 'a:1', but a list is needed: Addresses, such as"),
            ("blue: {servers: ['a:1', 'A:1']}", "blue.servers", "lists a:1 more than once"),
            ("blue: {servers: ['*:1']}", "blue.servers.0", "is '*:1', which is an address to listen on"),
            ("bind: 80", "bind", "is 80, which is not an address: write host:port"),
            ("bind: 'ho\u0455t:80'", "bind", "is 'ho\\u0455t:80', which is not an address"),
            ("failover: {max_per_hour: 0}", "failover.max_per_hour", "is 0, which is less than 1"),
            ("failover: {cooldown: -1s}", "failover.cooldown", "is '-1s', which is not a duration"),
            ("weights: {sticky: user}", "weights.sticky", "is 'user', which is not one of none, address, cookie:NAME"),
            ("tls: {cert: /a}", "tls.key", "is missing. Path of the private key."),
            ("http2: true", "http2", "needs tls"),
            ("policy: {trigger: never}", "policy.trigger", "is 'never', which is none of any, confidence"),
            (
                "criteria: {error_rate: {threshold: .nan, window: 1s}}",
                "criteria.error_rate.threshold",
                "is '.nan', which is not a number",
            ),
            (
                "criteria: {error_rate: {threshold: 1e400, window: 1s}}",
                "criteria.error_rate.threshold",
                "is 1e400, which is not a finite number",
            ),
            (
                "criteria: {response_time: {threshold: 1, window: 1s, quantile: 1}}",
                "criteria.response_time.quantile",
                "is 1, which is not less than 1",
            ),
            (
                "criteria: {eror_rate: {window: 1s, threshold: 1}}",
                "criteria.eror_rate",
                "is no metric of its own: did you mean 'error_rate'? known: error_rate, error_ratio",
            ),
            ("criteria: {x: {metric: y, window: 1s, threshold: 1}}", "criteria.x.metric", "is no metric of its own"),
            ("criteria: {error_rate: {window: 2h, threshold: 1}}", "criteria.error_rate.window", "is longer than 1h"),
            ("criteria: {error_rate: {window: 1s}}", "criteria.error_rate", "needs a threshold or a baseline"),
            ("criteria: {error_rate: {windw: 1s, window: 1s}}", "criteria.error_rate.windw", "unknown key 'windw'"),
            (
                "criteria: {error_rate: {window: 1s, baseline: other}}",
                "criteria.error_rate.baseline",
                "is for error_ratio and response_time",
            ),
            ("heatlh: {}", "heatlh", "unknown key 'heatlh': did you mean 'health'? known: bind, mode, blue"),
            ("8080: x", "8080", "unknown key '8080': known: bind"),
            ("initial: blue, initial: green", "initial", "the key is there twice, in line 4"),
            ("mode: !!binary eA==", "mode", "has the tag tag:yaml.org,2002:binary, and tags are not supported"),
        ],
    )
    def test_wrong_setting(self, inside, path, words):
        """Each message has the value as it was written and what is allowed, in plain words."""
        line, where, message = problems_of(minimal(shop=inside))[0]
        assert (line, where) == (4, f"services.shop.{path}")
        assert words in message
        for jargon in ("pydantic", "http://", "https://", "input", "Input", "str_type", "model"):
            assert jargon not in message

    @pytest.mark.parametrize(
        ("sections", "path", "words"),
        [
            ({"agent": "listen: '0.0.0.0:9180'"}, "agent.listen", "beyond loopback the API requires TLS and tokens"),
            ({"agent": "listen: 'unix:/a'"}, "agent.listen", "the unix socket of the API is agent.socket"),
            (
                {"agent": f"socket: /{'a' * 107}"},
                "agent.socket",
                "is too long for a unix socket: the path has 108 bytes",
            ),
            ({"balancer": "kind: nginx, unit: x.service"}, "balancer.unit", "needs managed: false"),
            ({"balancer": "kind: nginx, workers: 0"}, "balancer.workers", "is 0, which is less than 1"),
            ({"balancer": "managed: true"}, "balancer.kind", "is missing. nginx or haproxy."),
            ({"Shop": ""}, "services.Shop", "the name is not a service name: a-z first"),
            ({"sh\u043ep": ""}, "services.'sh\\u043ep'", "the name is not a service name"),
        ],
    )
    def test_wrong_section(self, sections, path, words):
        """The same outside of services, and for the services' names."""
        _, where, message = only_problem(minimal(**sections))
        assert where == path
        assert words in message

    def test_what_a_guest_needs(self):
        """A balancer of somebody else's: what is missing, and what is theirs to set, is said at once."""
        text = minimal(balancer="kind: haproxy, managed: false, workers: 2, control: docker, pid_file: /run/x.pid")
        assert [(path, message) for _, path, message in problems_of(text)] == [
            ("balancer.workers", "is the owner's to set with managed: false"),
            ("balancer.config", "is missing, which managed: false needs"),
            ("balancer.output_dir", "is missing, which managed: false needs"),
            ("balancer.master_socket", "is missing: without haproxy -S a switch reaches no worker"),
            ("balancer.pid_file", "is for control: signal, but control is docker"),
            ("balancer.container", "is missing, which control: docker needs"),
        ]

    def test_one_file_or_several(self):
        """`config` is a path, or a list in the order of haproxy -f."""
        guest = "kind: haproxy, managed: false, output_dir: /etc/haproxy/lbswitch, master_socket: /run/m.sock, config: "
        assert parse(minimal(balancer=guest + "/a"), "x").balancer.config == ("/a",)
        assert parse(minimal(balancer=guest + "[/a, /b]"), "x").balancer.config == ("/a", "/b")

    def test_services_of_a_guest_may_share_a_listener(self):
        """Names and paths tell them apart there; TLS is the owner's."""
        guest = "kind: nginx, managed: false, config: /etc/nginx/nginx.conf, output_dir: /etc/nginx/lbswitch"
        pools = "blue: {servers: ['127.0.0.1:1']}, green: {servers: ['127.0.0.1:2']}"
        listener = "bind: '127.0.0.1:443', verify: {host: a.example, tls: true}"
        assert parse(minimal(balancer=guest, shop=f"{listener}, {pools}", blog=f"{listener}, {pools}"), "x")
        _, where, message = only_problem(
            minimal(balancer=guest, shop=f"bind: '127.0.0.1:443', tls: {{cert: /c, key: /k}}, {pools}")
        )
        assert (where, "verify.tls" in message) == ("services.shop.tls", True)
        _, where, _ = only_problem(minimal(balancer=guest, shop="timeouts: {read: 5s}"))
        assert where == "services.shop.timeouts"

    def test_duplicate_key_names_both_lines(self):
        """The first and the second are said, since either may be the wrong one."""
        text = minimal().replace("balancer:", "agent: {}\nbalancer:")
        assert only_problem(text) == (2, "agent", "the key is there twice, in line 1 and in line 2")

    def test_missing_sections(self):
        """What is always needed is asked for, with an example."""
        found = problems_of("agent: {}\n")
        assert [(path, message.split(".")[0]) for _, path, message in found] == [
            ("balancer", "is missing"),
            ("services", "is missing"),
        ]

    @pytest.mark.parametrize("services", ["", "{}", "[]", "shop", "null"])
    def test_no_services(self, services):
        """At least one service, under its name."""
        _, path, message = only_problem(f"balancer: {{kind: nginx}}\nservices: {services}\n")
        assert path == "services"
        assert "but a mapping is needed. One section for each service, under its name." in message

    def test_a_long_value_is_cut(self):
        """A message stays readable whatever was pasted into the file."""
        _, _, message = only_problem(minimal(shop=f"initial: '{'x' * 100_000}'"))
        assert len(message) < 200


class TestNotYaml:
    @pytest.mark.parametrize(
        ("text", "line", "words"),
        [
            ("", 0, "is empty"),
            ("# only a comment\n\n", 0, "is empty"),
            ("---\n", 2, "is empty, but a mapping with these keys is needed: agent, balancer, services"),
            ("null\n", 1, "is empty, but a mapping"),
            ("- a\n", 1, "is a list, but a mapping"),
            ("shop\n", 1, "is 'shop', but a mapping"),
            ("agent: {}\n---\nagent: {}\n", 2, "a second document begins (---)"),
            ("agent: [1\n", 2, "is not valid YAML: did not find expected ',' or ']'"),
            ("agent:\n\tsocket: /a\n", 2, "indent with spaces, a tab can't do it"),
            ("agent: a: b\n", 1, "is not valid YAML: mapping values are not allowed"),
            ('agent: "\n', 2, "is not valid YAML"),
            ("a: 1\nb: \0\n", 2, "holds the character U+0000"),
            ("a: 1\nb: \x1b[31m\n", 2, "holds the character U+001B"),
            ("a: \ud800\n", 1, "holds the character U+D800"),
            ('a: "\\uD800"\n', 1, "is not valid YAML"),
            ("a: *nothing\n", 1, "*nothing refers to an anchor that is not defined above it"),
            ("a: &a [*a]\n", 1, "*a refers to the value that it is part of"),
            ("[" * 100_000, 1, "is nested deeper than 40 levels"),
            ("{a: " * 100_000, 1, "is nested deeper than 40 levels"),
            ("? [a]\n: b\n", 1, "a key must be a word"),
            ("{{ services }}: b\n", 1, "a key must be a word"),
            ("a: &a 1\n<<: *a\n", 2, "<< takes a mapping or a list of mappings"),
            ("<<: {a: 1}\n<<: {b: 1}\n", 2, "the key is there twice, in line 1 and in line 2"),
        ],
        ids=lambda value: ascii(value)[:30] if isinstance(value, str) else None,
    )
    def test_refused_with_its_line(self, text, line, words):
        """What can't be read says why and where."""
        assert any(at == line and words in message for at, _, message in problems_of(text))

    @pytest.mark.parametrize("merge", [False, True])
    def test_billion_laughs(self, merge):
        """A few lines of aliases can't take the memory of the machine."""
        lines = ["a0: &a0 {x: 1, y: 1}"]
        for level in range(1, 30):
            inside = ", ".join(f"k{i}: *a{level - 1}" for i in range(10))
            lines.append(f"a{level}: &a{level} {{{'<<: *a0, ' if merge else ''}{inside}}}")
        line, _, message = problems_of("\n".join(lines))[0]
        assert line == 7
        assert message == "holds more than 1000000 values, counting what its aliases stand for"

    def test_deep_aliases(self):
        """Aliases can't nest deeper than what can be written out."""
        lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60))]
        assert "nested deeper than 40 levels" in problems_of("\n".join(lines))[0][2]

    def test_nothing_else_is_ever_raised(self):
        """Whatever is done to a file, the answer is a configuration or a ConfigError."""
        choose = random.Random(7)
        for _ in range(1000):
            text = list(CONTRACT)
            for _ in range(choose.randrange(1, 6)):
                at = choose.randrange(len(text))
                text[at : at + choose.randrange(3)] = choose.choice("\n\t :{}[],&*!|>'\"%@`#-?~\0\ud800é0")
            with contextlib.suppress(ConfigError):
                parse("".join(text), "fuzzed")


class TestTogether:
    @pytest.mark.parametrize(
        ("one", "other", "kind"),
        [
            ("127.0.0.1:80", "127.0.0.1:80", "nginx"),
            ("*:80", "127.0.0.1:80", "nginx"),
            ("127.0.0.1:80", "0.0.0.0:80", "nginx"),
            ("*:80", "0.0.0.0:80", "haproxy"),
            ("[::]:80", "[::1]:80", "nginx"),
            ("[::1]:80", "[0::1]:80", "nginx"),
            ("localhost:80", "127.0.0.1:80", "nginx"),
            ("localhost:80", "[::1]:80", "nginx"),
            ("localhost:80", "*:80", "nginx"),
            ("unix:/run/a", "unix:/run/a", "nginx"),
        ],
    )
    def test_same_listener(self, one, other, kind):
        """Two services can't listen where one would take the other's connections."""
        line, path, message = only_problem(minimal(balancer=f"kind: {kind}", a=f"bind: '{one}'", b=f"bind: '{other}'"))
        assert (line, path) == (5, "services.b.bind")
        assert "services.a.bind" in message
        assert "listens on already" in message

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("*:80", "*:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("*:80", "[::]:80"),  # which is rendered for IPv6 only
            ("*:80", "[::1]:80"),
            ("unix:/run/a", "unix:/run/b"),
        ],
    )
    def test_different_listeners(self, one, other):
        """What can exist side by side may."""
        parse(minimal(a=f"bind: '{one}'", b=f"bind: '{other}'"), "a")

    @pytest.mark.parametrize("agent", ["listen: '127.0.0.1:80'", "socket: /run/a"])
    def test_the_agent_listens_too(self, agent):
        """A service can't take the API's place."""
        _, path, message = only_problem(
            minimal(agent=agent, a="bind: '*:80'" if "listen" in agent else "bind: 'unix:/run/a'")
        )
        assert path == "services.a.bind"
        assert f"agent.{agent.partition(':')[0]}" in message

    @pytest.mark.parametrize("bind", ["127.0.0.1:80", "*:80", "localhost:80"])
    def test_a_service_that_is_its_own_server(self, bind):
        """Requests would go in a circle."""
        text = minimal(a=f"bind: '{bind}', green: {{servers: ['10.0.0.1:80', '127.0.0.1:80']}}")
        line, path, message = only_problem(text)
        assert (line, path) == (4, "services.a.green.servers.1")
        assert "where a itself listens: its requests would go in a circle" in message

    def test_a_longer_circle(self):
        """Also when it takes three services to come back."""
        servers = {"a": 8001, "b": 8002, "c": 8000}
        found = problems_of(
            minimal(**{name: f"blue: {{servers: ['127.0.0.1:{port}']}}" for name, port in servers.items()})
        )
        assert [path for _, path, _ in found] == [f"services.{name}.blue.servers.0" for name in servers]

    def test_a_chain_is_no_circle(self):
        """A service may well be the server of another one."""
        parse(minimal(a="blue: {servers: ['127.0.0.1:8001']}", b=""), "a")

    def test_names_that_become_one(self):
        """nginx's variables have no -, so these two would be one."""
        text = minimal(**{"my-shop": "", "my_shop": ""})
        line, path, message = only_problem(text)
        assert (line, path) == (5, "services.my_shop")
        assert "the same name as my-shop once - becomes _" in message

    @pytest.mark.parametrize(
        ("balancer", "inside", "path", "words"),
        [
            (
                "kind: haproxy",
                "switching: pointer",
                "services.a.switching",
                "haproxy does not have: write map or reload",
            ),
            ("kind: nginx", "switching: map", "services.a.switching", "nginx does not have: write pointer or reload"),
            ("kind: nginx", "mode: tcp", "services.a.mode", "needs balancer.kind: haproxy"),
            ("kind: haproxy, workers: 65", "", "balancer.workers", "is 65, but HAProxy has at most 64 threads"),
        ],
    )
    def test_what_a_balancer_can_not(self, balancer, inside, path, words):
        """What this kind of balancer does not have is said before anything is rendered."""
        _, where, message = only_problem(minimal(balancer=balancer, a=inside))
        assert where == path
        assert words in message

    def test_what_a_balancer_can(self):
        """The same settings, on the balancer that has them."""
        config = parse(minimal(balancer="kind: haproxy, workers: 64", a="switching: map, mode: tcp"), "a")
        assert config.switching("a") is Switching.MAP

    @pytest.mark.parametrize(
        ("inside", "path"),
        [("http2: true", "http2"), ("weights: {sticky: 'cookie:sid'}", "weights.sticky")],
    )
    def test_what_tcp_can_not(self, inside, path):
        """There are no cookies and no HTTP/2 in a TCP service."""
        _, where, message = only_problem(minimal(balancer="kind: haproxy", a=f"mode: tcp, {inside}"))
        assert where == f"services.a.{path}"
        assert "mode: http" in message

    def test_haproxy_needs_short_paths(self):
        """It binds a socket under a longer, temporary name first, and its own lie in the state directory."""
        agent = f"state_dir: /{'a' * 80}"
        assert only_problem(minimal(balancer="kind: haproxy", agent=agent))[1] == "agent.state_dir"
        parse(minimal(agent=agent), "a")
        bind = f"bind: 'unix:/{'a' * 95}'"
        assert only_problem(minimal(balancer="kind: haproxy", a=bind))[1] == "services.a.bind"
        parse(minimal(a=bind), "a")

    def test_valid_sections_are_checked_together_all_the_same(self):
        """A broken service does not hide that two others collide."""
        found = problems_of(minimal(a="bind: '*:80'", b="initial: red", c="bind: '*:80'"))
        assert [path for _, path, _ in found] == ["services.b.initial", "services.c.bind"]


class TestSources:
    def test_reading(self):
        """Every kind, with what is common to all."""
        sources = parse(CONTRACT + SOURCES, "a").sources
        assert {name: source.kind for name, source in sources.items()} == {
            **{"db": "postgres", "p99": "prometheus", "queue": "http", "lag": "command", "cpu": "host"},
        }
        assert [(one.interval, one.timeout, one.stale_after) for one in sources.values()][:2] == [
            *((5.0, 2.0, None), (10.0, 2.0, 60.0)),
        ]

    def test_criterion_without_its_source(self):
        """A name that is misspelled is told with the names there are."""
        _, where, message = only_problem(CONTRACT.replace("source: db", "source: bd") + SOURCES)
        assert where == "services.shop.criteria.database_connections.source"
        assert message.startswith("is 'bd', which is no source:")
        assert message.endswith("known: db, p99, queue, lag, cpu")

    def test_a_source_with_a_problem_is_known(self):
        """What is wrong with it is said once, where it is wrong."""
        assert only_problem(CONTRACT + "sources: {db: {kind: postgres}}\n")[1] == "sources.db.dsn"

    @pytest.mark.parametrize(
        ("source", "path", "words"),
        [
            ("{kind: promteus}", "x.kind", "is 'promteus', which is none of prometheus, http, command, postgres, host"),
            ("{query: x}", "x.kind", "is missing. One of prometheus"),
            ("5", "x", "is 5, but a mapping is needed"),
            ("{kind: host, metric: gpu}", "x.metric", "is none of cpu, memory, load, disk"),
            ("{kind: host, metric: cpu, path: /}", "x.path", "is for metric: disk"),
            ("{kind: command, command: []}", "x.command", "is empty"),
            ("{kind: command, command: 'a b'}", "x.command", "but a list is needed"),
            ("{kind: host, metric: cpu, timeout: 11s}", "x.timeout", "is longer than the interval (10s)"),
            ("{kind: host, metric: cpu, interval: 50ms, timeout: 50ms}", "x.interval", "is shorter than 100ms"),
            ("{kind: host, metric: cpu, stale_after: 11s}", "x.stale_after", "together (12s)"),
            ("{kind: http, url: 'ftp://a', pointer: /a}", "x.url", "is not a URL"),
            ("{kind: http, url: 'http://a b', pointer: /a}", "x.url", "is not a URL"),
            ("{kind: http, url: 'http://a:65536', pointer: /a}", "x.url", "is not a URL"),
            ("{kind: http, url: 'http://me:secret@a', pointer: /a}", "x.url", "holds a user or a password"),
            ("{kind: http, url: 'http://a'}", "x.pointer", "is missing"),
            ("{kind: http, url: 'http://a', pointer: /a, jmespath: a}", "x.jmespath", "beside pointer"),
            ("{kind: http, url: 'http://a', pointer: a/b}", "x.pointer", "is not a JSON pointer"),
            ("{kind: http, url: 'http://a', jmespath: 'a['}", "x.jmespath", "is not a JMESPath expression: "),
            ("{kind: http, url: 'http://a', pointer: /a, user: me}", "x.user", "needs password_file"),
            ("{kind: http, url: 'http://a', pointer: /a, ca_file: /a}", "x.ca_file", "is for an https URL"),
            ("{kind: http, url: 'http://a', pointer: /a, token: abc}", "x.token", "did you mean 'token_file'?"),
            ("{kind: prometheus, url: 'http://a?b', query: x}", "x.url", "holds a `?`"),
            ("{kind: prometheus, url: 'http://a', query: ''}", "x.query", "is empty"),
            ("{kind: postgres}", "x.dsn", "is missing"),
            ("{kind: postgres, dsn: service=a, dsn_file: /a}", "x.dsn_file", "stands beside dsn"),
            ("{kind: postgres, dsn: 'host=a password=secret'}", "x.dsn", "holds a password"),
            ("{kind: postgres, dsn: 'postgresql://me:secret@a/b'}", "x.dsn", "holds a password"),
        ],
    )
    def test_what_is_wrong(self, source, path, words):
        """The line's key, and what to write instead; a secret is never repeated."""
        _, where, message = only_problem(minimal() + f"sources: {{x: {source}}}\n")
        assert where == f"sources.{path}"
        assert words in message
        assert "secret" not in message

    @pytest.mark.parametrize("text", ["http://a", "https://a.example:1/b?c=d", "http://[::1]:9090/x", "http://[::1]"])
    def test_urls(self, text):
        """What is a URL."""
        source = f"{{kind: http, url: '{text}', pointer: ''}}"
        assert parse(minimal() + f"sources: {{x: {source}}}\n", "a").sources["x"].url == text


class TestNotes:
    def test_nothing_to_say(self):
        """An ordinary configuration is quiet."""
        assert notes(parse(minimal(), "a")) == []

    def test_undefined_source(self):
        """A criterion that nothing can feed is not ignored silently."""
        said = "there is no section sources, so criteria that need db can't be judged: docs/sources.md"
        assert said in notes(parse(CONTRACT, "a"))

    def test_shared_server(self):
        """A server in both colors is allowed, and probably a mistake."""
        config = parse(
            minimal(a="blue: {servers: ['10.0.0.1:1']}, green: {servers: ['10.0.0.1:1', '10.0.0.2:1']}"), "a"
        )
        assert notes(config) == [
            "services.a: blue and green both have 10.0.0.1:1, so a switch does not move them",
        ]


@pytest.fixture(scope="module")
def validator():
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


class TestSchema:
    def test_dialect(self):
        """It says which JSON Schema it is, and is JSON."""
        assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        json.dumps(schema())

    def test_accepts_the_contract(self, validator):
        """The example that users are shown passes, and so does everything with its defaults written out."""
        root, _ = read_tree(CONTRACT + SOURCES)
        validator.validate(root.plain())
        validator.validate(json.loads(parse(CONTRACT + SOURCES, "a").model_dump_json()))

    def test_accepts_its_own_defaults(self, validator):
        """Every default is such as the schema asks for."""
        defaults = [(part, key) for part in walk(validator.schema) for key in ("default",) if key in part]
        assert len(defaults) > 20
        for part, key in defaults:
            validator.evolve(schema={**part, "$defs": validator.schema["$defs"]}).validate(part[key])

    @pytest.mark.parametrize(
        "inside",
        [
            *(
                "health: {path: 5}",
                "health: {interval: 0x1s}",
                "health: {interval: 5}",
                "health: {rise: 0}",
                "bind: 80",
            ),
            *("health: {rise: '2'}", "health: {rise: true}", "health: {rise: 1e3}", "health: {tls: on}", "http3: true"),
            *("health: {expect: 600}", "health: {expect: [200, 5]}", "health: {expect: []}", "health: {expect: 2x}"),
            *("health: {body: ''}", "health: {host: 'a b'}", "health: {method: POST}", "health: {type: x}", "health: "),
            *(
                "bind: '*:0'",
                "bind: '[::1%x]:80'",
                "bind: 'a;b:1'",
                "bind: '1.2.3:80'",
                "bind: 'unix:a'",
                "bind: '::1:80'",
            ),
            *(
                "bind: '1.2.3.4:65536'",
                "bind: '1.2.3.256:80'",
                "bind: '01.2.3.4:80'",
                "bind: 'a..b:80'",
                "bind: '0x1:80'",
            ),
            *(
                "blue: {servers: []}",
                "blue: {servers: ['*:1']}",
                "blue: {servers: ['0.0.0.0:1']}",
                "blue: {servers: 'a:1'}",
            ),
            *("blue: {servers: ['[::]:1']}", "blue: {servers: ['a:1', 'a:1']}", "initial: red", "tls: {cert: /a}"),
            *("weights: {sticky: x}", "policy: {trigger: x}", "criteria: {error_rate: {threshold: -1, window: 1s}}"),
            *("criteria: {error_rate: {threshold: 1}}", "criteria: {x: {}}", "bake: {on_breach: x}", "switching: x"),
        ],
    )
    def test_refuses_what_parse_refuses(self, validator, inside):
        """An editor that knows the schema marks what lbswitch would refuse."""
        text = minimal(shop=inside)
        assert problems_of(text)
        assert not validator.is_valid(read_tree(text)[0].plain())

    @pytest.mark.parametrize(
        "sections",
        [
            *({"agent": "state_dir: x"}, {"agent": "socket: /a;b"}, {"agent": "x: 1"}, {"balancer": "kind: x"}),
            *({"agent": "listen: '10.0.0.1:1'"}, {"agent": "listen: 'unix:/a'"}, {"agent": "listen: '*:1'"}),
            *({"balancer": "managed: true"}, {"balancer": "kind: nginx, managed: 0"}, {"Shop": ""}, {"x" * 49: ""}),
            {"balancer": "kind: nginx, workers: 257"},
        ],
    )
    def test_refuses_wrong_sections(self, validator, sections):
        """The same outside of services."""
        text = minimal(**sections)
        assert problems_of(text)
        assert not validator.is_valid(read_tree(text)[0].plain())

    @pytest.mark.parametrize(
        "inside",
        [
            *(
                "bind: '*:80'",
                "bind: '[::]:80'",
                "bind: '[2001:db8::1]:65535'",
                "bind: 'shop.example.:80'",
                "bind: 'a1:1'",
            ),
            *(
                "bind: 'unix:/run/a.sock'",
                "bind: '0.0.0.0:10000'",
                "bind: 'localhost:59999'",
                "bind: '255.255.255.255:1'",
            ),
            *("health: {expect: 200}", "health: {expect: 200-299}", "health: {expect: [200, 300-399, '401']}"),
            *("health: {host: null, interval: 1.5s, rise: 1.0}", "health: {type: command, command: [a, '']}"),
            *("weights: {sticky: 'header:X-User'}", "bake: null", "failover: {cooldown: 0s}", "switching: null"),
            *("blue: {servers: ['[::1]:1', 'a.b:2', '10.0.0.1:3', 'unix:/a']}", "blue: {servers: ['0.0.0.1:1']}"),
            "criteria: {error_rate: {threshold: 0, window: 1m, source: null}}",
        ],
    )
    def test_accepts_what_parse_accepts(self, validator, inside):
        """An editor that knows the schema marks nothing that lbswitch would take."""
        text = minimal(shop=inside)
        parse(text, "a")
        validator.validate(read_tree(text)[0].plain())

    def test_knows_every_key(self, validator):
        """Every setting is there, and each that needs explaining says what it is."""
        names = set(validator.schema["$defs"]["ServiceConfig"]["properties"])
        assert names == set(ServiceConfig.model_fields)
        assert set(validator.schema["properties"]) == set(Config.model_fields)
        assert set(validator.schema["$defs"]["BalancerConfig"]["properties"]) == set(BalancerConfig.model_fields)


def walk(part):
    """Every object of a JSON document."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from walk(item)
