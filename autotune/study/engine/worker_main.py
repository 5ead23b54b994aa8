"""Run one worker: ``python -m autotune.study.engine.worker_main``, as the launcher starts it."""

import sys

from autotune.runtime import collect_rarely, leave

if __name__ == "__main__":
    collect_rarely()
    from autotune.study.engine.worker import main

    leave(main(sys.argv[1:]))
