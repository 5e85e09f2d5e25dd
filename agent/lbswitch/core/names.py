"""The names that services and colors have inside a rendered configuration."""

from __future__ import annotations

from lbswitch.core.model import Color


def pool_name(service: str, color: Color) -> str:
    """The nginx `upstream` or HAProxy `backend` of a color: `shop_blue`."""
    return f"{service}_{color}"


def guest_pool_name(service: str, color: Color) -> str:
    """The same in a configuration that is somebody else's, where `shop_blue` may be theirs: `lbswitch_shop_blue`."""
    return f"lbswitch_{pool_name(service, color)}"


def variable_name(service: str) -> str:
    """The service inside nginx variable names, which hold no `-`: `my-shop` becomes `my_shop`."""
    return service.replace("-", "_")


def shielded_name(pool: str) -> str:
    """The same pool with the other color's servers standing by: `shop_green_shielded`."""
    return f"{pool}_shielded"
