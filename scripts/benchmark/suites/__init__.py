"""What is measured: each module's `run(bench)` answers one question."""

from scripts.benchmark.suites import agent, cost, evidence, limits, scale, startup, switch, zero

# In the order in which they run, with the seconds after which a suite is given up.
SUITES = {
    "limits": (limits.run, 60),
    "startup": (startup.run, 120),
    "switch": (switch.run, 1200),
    "zero": (zero.run, 700),
    "cost": (cost.run, 420),
    "evidence": (evidence.run, 300),
    "agent": (agent.run, 600),
    "scale": (scale.run, 600),
}
