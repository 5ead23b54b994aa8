"""The process of a worker that a launcher starts: ``python -m autotune.study.process``."""

import sys

from autotune.interpreter import collect_rarely, leave

if __name__ == "__main__":
    collect_rarely()
    from autotune.study.worker import main

    leave(main(sys.argv[1:]))
