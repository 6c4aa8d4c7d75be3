"""From a target to rates: how much quality each site is worth, what it costs, and which rates reach a target.

sensitivity.py   what the sensitivity job measured: quality lost against the rate of each site
latency.py       what the profile job measured: milliseconds of each block against its widths
search.py        rates that reach a target at the least predicted loss

numpy and scipy only, so that a page can ask while a slider moves. What is measured comes from `core/operations`.
"""
