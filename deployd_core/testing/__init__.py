"""What tests need: of deployd itself, and of plugins."""
