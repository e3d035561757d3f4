"""deployd: a deploy agent that restarts services by pluggable strategies."""

__version__ = "0.1.0"
