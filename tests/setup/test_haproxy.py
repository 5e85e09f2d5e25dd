"""init and uninstall on a packaged HAProxy with a frontend of an operator, really running."""

from pathlib import Path

from lbswitch.setup.haproxy_loading import extra_options
from tests.setup.conftest import Haproxies
from tests.setup.owner import HAProxyOwner, run

HOST_RULE = "\tacl is_shop hdr(host) -i shop.example\n\tuse_backend shop_green if is_shop\n"


def init(owner: HAProxyOwner, *more: str) -> str:
    said = run(owner, "init", *owner.init_options(), "--yes", *more)
    assert said.code == 0, said.output
    return str(said.output)


def test_the_main_job(haproxies: Haproxies):
    """Plug in, switch, roll back, unplug: only consented lines differ in between, and not one byte afterwards."""
    owner = haproxies(directory=True).start()
    before, lines = owner.snapshot(), owner.main.read_text().splitlines()
    init(owner)
    after = owner.main.read_text().splitlines()
    added = [line.strip() for line in after if line not in lines]
    map_file = owner.root / "lbswitch" / "live.map"
    assert added == [
        "hard-stop-after 30m",
        "option idle-close-on-response",
        f"use_backend lbswitch_shop_%[str(shop),map({map_file},blue)]",
    ]
    assert (owner.root / "conf.d" / "lbswitch.cfg").is_symlink()
    assert "static" in owner.get(f"{owner.url}static")
    with owner.agent() as agent:
        assert agent.lbswitch("green").code == 0
        assert owner.serves() == "green"
        assert agent.lbswitch("rollback").code == 0
    said = run(owner, "uninstall", "--yes")
    assert said.code == 0, said.output
    assert owner.snapshot() == before
    assert owner.serves() == "blue"
    assert not (owner.root / "lbswitch").exists()


def test_a_rule_with_a_condition_is_taken_over_where_it_stands(haproxies: Haproxies):
    """The condition goes with it, the color that it sends to is live, and requests for others go where they went."""
    owner = haproxies(directory=True, frontend=HOST_RULE).start()
    text = owner.main.read_text().replace("default_backend shop_blue", "default_backend static")
    owner.main.write_text(text)
    init(owner, "--no-tune")
    assert "%[str(shop),map(" in owner.main.read_text().split("use_backend shop_green")[0]
    ours = next(line for line in owner.main.read_text().splitlines() if "%[str(shop)" in line)
    assert ours.endswith(",green)] if is_shop")
    written = owner.config_path.read_text()
    assert "initial: green" in written
    assert "verify: {host: shop.example}" in written
    assert owner.get(owner.url, host="shop.example").startswith("green")
    with owner.agent() as agent:
        assert agent.lbswitch("blue").code == 0
        assert owner.get(owner.url, host="shop.example").startswith("blue")
        assert agent.lbswitch("green").code == 0
    assert run(owner, "uninstall", "--yes").code == 0
    assert owner.main.read_text() == text


def test_without_a_way_to_load_our_file_the_owner_is_told(haproxies: Haproxies):
    """Everything is prepared; traffic goes where it went until HAProxy is started with one more -f."""
    owner = haproxies().start()
    before = owner.snapshot()
    told = init(owner)
    ours = owner.root / "lbswitch" / "current" / "lbswitch.cfg"
    assert f"left to do: HAProxy has to be started with one more option: -f {ours}" in told
    assert owner.serves() == "blue"
    for process in owner.processes():
        process.kill()
    owner.start("-f", str(ours))
    with owner.agent() as agent:
        assert agent.lbswitch("green").code == 0
        assert owner.serves() == "green"
        assert agent.lbswitch("blue").code == 0
    said = run(owner, "uninstall", "--yes")
    assert "still has lbswitch's file among its arguments" in said.output
    assert owner.snapshot() == before
    assert ours.exists()
    for process in owner.processes():
        process.kill()
    owner.start()
    assert run(owner, "uninstall", "--yes").code == 0
    assert not (owner.root / "lbswitch").exists()


def test_a_configuration_that_is_refused_is_not_touched(haproxies: Haproxies):
    """HAProxy's own words are said, and not a byte is written."""
    owner = haproxies(directory=True).start()
    owner.main.write_text(owner.main.read_text().replace("timeout connect 5000", "timeout connect soon"))
    before = owner.snapshot()
    said = run(owner, "init", *owner.init_options(), "--yes")
    assert said.code == 2
    assert f"{owner.main}:" in said.output.split("refuses the configuration")[1]
    assert owner.snapshot() == before
    assert not owner.config_path.exists()


def test_extraopts_take_the_place_of_the_units_own(tmp_path: Path):
    """The master socket stays, what the owner had stays, and comments are not taken for settings."""
    path, ours = tmp_path / "haproxy", Path("/etc/haproxy/lbswitch/current/lbswitch.cfg")
    path.write_text('# EXTRAOPTS="-de"\nCONFIG=/etc/haproxy/haproxy.cfg')
    change = extra_options(path, "-S /run/haproxy-master.sock", ours)
    assert change.after is not None
    assert change.after.data.decode().splitlines()[2] == f'EXTRAOPTS="-S /run/haproxy-master.sock -f {ours}"'
    path.write_text('EXTRAOPTS="-de -m 16"   \n')
    change = extra_options(path, "-S /run/haproxy-master.sock", ours)
    assert change.after is not None
    assert change.after.data.decode() == f'EXTRAOPTS="-de -m 16 -S /run/haproxy-master.sock -f {ours}"   \n'


def test_the_agents_group_may_use_the_master_socket(tmp_path: Path):
    """HAProxy makes it as root; who set its owner already is left alone."""
    path, ours = tmp_path / "haproxy", Path("/etc/haproxy/lbswitch/current/lbswitch.cfg")
    for written, wanted in (("", "/run/haproxy-master.sock,mode,660,group,ops"), ("-S /m,mode,600", "/m,mode,600")):
        path.write_text(f'EXTRAOPTS="{written}"\n')
        change = extra_options(path, "", ours, "ops")
        assert change.after is not None
        assert change.after.data.decode() == f'EXTRAOPTS="-S {wanted} -f {ours}"\n'
