"""Proof before production: what a plugin must keep to, tried on it hundreds of times, and the seed of whatever goes wrong."""
