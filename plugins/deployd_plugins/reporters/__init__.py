"""Reporters that ship with deployd."""
