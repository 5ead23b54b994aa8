"""Backbones, their layers, and the networks that trials train."""
