"""Verbs about study files, data sets, backbones and storages."""
