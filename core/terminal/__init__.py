"""The verbs on a terminal; `python -m core`."""
