"""What is odd about a data set: warnings, statistics, contact sheets."""
