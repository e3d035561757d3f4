"""Steps that ship with deployd."""
