"""Managers that ship with deployd."""
