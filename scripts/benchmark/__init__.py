"""`scripts/bench`: what a switch costs its clients, and what lbswitch costs its machine, next to others.

`suites/` holds what is measured, one question a file; `systems/` holds what is compared, one way of switching a file.
A suite gives `Figure`s to a `Record`, and the record becomes JSON, Markdown and plots.
"""
