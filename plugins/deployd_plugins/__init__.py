"""The other plugins that ship with deployd, one folder per kind."""
