"""Weights of changed layers, fitted to what the pretrained network computes on some images.

regression solves > sites finds what to fit, rows collects its inputs and targets > layers fits one
layer after another
"""
