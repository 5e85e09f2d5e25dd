"""Where nginx and the agent meet about real traffic, from the state directory."""

DIRECTORY = "traffic"
LEASE = f"{DIRECTORY}/lease"
"""A file for every ten seconds in which an agent reads (`traffic.lease`)."""
MANAGED_PREFIX, MANAGED_LOG = "nginx", "traffic.log"
"""The log of an nginx of ours: in its prefix, so that its configuration names it without a directory."""
GUEST_LOG = f"{DIRECTORY}/nginx.log"
"""The log of an owner's nginx."""
