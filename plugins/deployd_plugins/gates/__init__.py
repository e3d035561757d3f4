"""Gates that ship with deployd."""
