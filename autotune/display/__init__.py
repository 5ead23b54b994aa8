"""What the command line and the Python API show: consoles, tables, progress."""
