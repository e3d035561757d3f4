"""Sources that ship with deployd."""
