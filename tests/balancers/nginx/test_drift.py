"""Hands in the pointer and in rendered files of an nginx, and reloads that were not lbswitch's."""

import os
import signal
from collections.abc import Callable

import pytest

from lbswitch.core.model import Route
from tests.balancers.nginx.owner import Guest, Owner
from tests.balancers.nginx.site import BLUE, GREEN, Site
from tests.support.wait import wait_until

Make = Callable[..., Site]


def sentences(site: Site | Guest) -> list[str]:
    return [each.what for each in site.nginx.differences(site.intent)]


def repair(site: Site | Guest) -> None:
    site.nginx.repair(site.intent, None)
    assert sentences(site) == []


def workers(site: Site) -> frozenset[int]:
    return site.nginx._workers()


def files_of(owner: Owner) -> dict[str, tuple[str, int]]:
    """What is the owner's alone."""
    return {path: found for path, found in owner.fingerprint().items() if not path.startswith(str(owner.output))}


def test_nothing_differs_after_whatever_lbswitch_does(site: Make):
    """Moves, weights with their reload, a second reload; looked at while old workers still answer."""
    shop = site()
    assert sentences(shop) == []
    for route in (GREEN, Route(GREEN, 30), BLUE, Route(BLUE, 50), GREEN):
        shop.apply(shop.after(shop=route))
        for _ in range(20):
            assert sentences(shop) == []
    shop.nginx.reload()
    for _ in range(20):
        assert sentences(shop) == []


@pytest.mark.parametrize("bucket", ["7", "60"])
def test_a_bucket_more_or_less_is_another_share(site: Make, service: Callable[..., dict], bucket: str):
    shop = site({"shop": service(weights={})})
    shop.switch(shop=Route(GREEN, 50))
    path = shop.state_dir / "live" / "shop" / bucket
    path.unlink() if bucket == "7" else path.touch()
    (difference,) = shop.nginx.differences(shop.intent)
    assert "\n-buckets 0-49\n" in difference.diff
    assert f"\n+buckets {'0-6, 8-49' if bucket == '7' else '0-49, 60'}\n" in difference.diff
    repair(shop)
    assert shop.observe().share_green == 50


def test_a_pointer_to_a_copy_of_an_older_generation(site: Make):
    """Somebody kept it and put it back: each service that differs is named, with both generations."""
    shop = site()
    shop.switch(shop=GREEN)
    copy = shop.state_dir / "gen-000001.kept"
    (copy / "shop").mkdir(parents=True)
    (copy / "shop" / "blue").touch()
    (copy / "shop" / "state").write_text("shop 1 0\n")
    live = shop.state_dir / "live"
    live.unlink()
    live.symlink_to(copy.name)
    (sentence,) = sentences(shop)
    assert sentence == "shop: intended is green of generation 2, the pointer says blue of generation 1"
    repair(shop)
    assert shop.color() == "green"


def test_a_stopped_nginx_is_compared_on_disk_alone(site: Make):
    shop = site()
    shop.switch(shop=GREEN)
    shop.nginx.stop()
    assert sentences(shop) == []
    (shop.state_dir / "live").unlink()
    assert "is gone" in sentences(shop)[0]
    repair(shop)
    assert not shop.nginx.is_running()
    shop.nginx.start()
    wait_until(lambda: shop.color() == "green", "it starts on green")


def test_a_reload_by_hand_of_sound_files_is_no_drift(site: Make):
    """nginx -s reload, or a worker that died and came again: they read what is intended."""
    shop = site()
    before = workers(shop)
    os.kill(int((shop.prefix / "nginx.pid").read_text()), signal.SIGHUP)
    wait_until(lambda: not before & workers(shop), "new workers")
    assert sentences(shop) == []
    os.kill(next(iter(workers(shop))), signal.SIGKILL)
    assert sentences(shop) == []


def test_files_that_were_edited_and_reloaded_are_reloaded_again(site: Make):
    """The revision that nginx tells is the same; the workers give it away."""
    shop = site()
    path = shop.prefix / "current" / "nginx.conf"
    text = path.read_text()
    assert sentences(shop) == []
    path.write_text(text.replace("client_max_body_size 0", "client_max_body_size 1"))
    before = workers(shop)
    assert [each.where for each in shop.nginx.differences(shop.intent)] == ["disk"]
    os.kill(int((shop.prefix / "nginx.pid").read_text()), signal.SIGHUP)
    wait_until(lambda: not before & workers(shop), "new workers")
    assert [each.where for each in shop.nginx.differences(shop.intent)] == ["disk", "running"]
    path.write_text(text)
    (left,) = shop.nginx.differences(shop.intent)
    assert "may run those; a reload is needed" in left.what
    edited = workers(shop)
    repair(shop)
    wait_until(lambda: not edited & workers(shop), "workers that read what is intended")


def test_in_an_owners_nginx_ours_is_put_right_and_theirs_is_left(owner: Owner, guest: Callable[..., Guest]):
    """The pointer, and our files, without a reload; all that is the owner's stays as it is."""
    shop = guest().install()
    owner.start()
    shop.switch(GREEN)
    assert sentences(shop) == []
    theirs, before = files_of(owner), owner.workers()
    (owner.state_dir / "live").unlink()
    current = shop.nginx._rendered.current
    (current / "http.conf").write_text("")
    said = sentences(shop)
    assert len(said) == 3, said
    repair(shop)
    assert shop.nginx.observe("shop").color is GREEN
    assert (files_of(owner), owner.workers()) == (theirs, before)
