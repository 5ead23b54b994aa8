"""Run one worker: ``python -m autotune.study.engine.worker_main``, as the launcher starts it."""

import sys

from autotune.runtime import fast_exit, raise_gc_threshold

if __name__ == "__main__":
    raise_gc_threshold()
    from autotune.study.engine.worker_process import run_worker_process

    fast_exit(run_worker_process(sys.argv[1:]))
