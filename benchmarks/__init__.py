"""Figures that this project states, each printed by one command."""
