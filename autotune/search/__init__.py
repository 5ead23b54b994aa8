"""The space of a study, its samplers and its pruners."""
