"""Backbones, weights and spaces for tests."""
