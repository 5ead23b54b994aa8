"""Run and read a study from Python; the command line uses the same studies.

The printed progress is that of ``autotune run`` without a terminal.
"""

from autotune.api.reader import TrialSummary
from autotune.api.seeds import run_seeds
from autotune.api.study import Study

__all__ = ["Study", "TrialSummary", "run_seeds"]
