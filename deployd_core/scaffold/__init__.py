"""The beginnings of a plugin: an installable package with tests that pass, to be filled in."""
