"""Published data sets with a name: their archives, readers and counts."""
