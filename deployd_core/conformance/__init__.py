"""Proof before production: what a plugin must keep to, tried on it hundreds of times, and the seed of whatever goes wrong."""

SEEDS = 200
"""Modelled hosts that a strategy is tried on, by the command and by the contract alike, unless somebody says otherwise."""
