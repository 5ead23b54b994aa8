"""The doctor: collects what is known of a study, checks it, and repairs what can be repaired."""
