"""The strategies that ship with deployd, one file each."""
