"""A model of a small fleet, searched through every interleaving; see docs/safety.md."""
