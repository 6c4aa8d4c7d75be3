"""Pruning as data: scores -> plan -> mask or cut.

units.py     which slices of which tensors go with each unit of a site (no torch)
plans.py     rates and scores to keep-indices; the rounding rule; checks (no torch)
scores.py    magnitude of each unit (torch; torch-pruning's importance where it is right)
surgery.py   a plan applied to a state dict: cut out, or zeroed (torch)
masks.py     single weights: exact-count selection in one tensor or over all (torch)
ordinary.py  networks that are no DC-AE, through torch-pruning's own engine (torch)
"""
