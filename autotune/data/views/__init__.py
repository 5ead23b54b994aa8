"""Augmented views of images, and what a study trains on."""
