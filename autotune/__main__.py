"""``python -m autotune``: the command of the package that Python finds."""

from autotune.cli.main import process

if __name__ == "__main__":
    process()
