"""Ways to run a command, its workers and servers in tests."""
