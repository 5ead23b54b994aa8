"""Values in numbers and words: objectives, intervals, verdicts, Pareto fronts."""
