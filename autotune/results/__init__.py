"""What came out of a study: summary, report, dashboard, final fit."""
