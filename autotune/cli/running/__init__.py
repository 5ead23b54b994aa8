"""Verbs that run a study or look after a running one."""
