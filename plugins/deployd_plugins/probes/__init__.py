"""Probes that ship with deployd."""
