"""Backbones, their layers, and the networks that trials train."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "Backbone": "backbone",
        "LayerCapabilities": "surgery.capabilities",
        "Network": "network",
        "PrefixSplit": "prefix.split",
        "build_network": "network",
        "inspect_layers": "inspection",
        "list_layers": "layers",
        "load_backbone": "backbone",
    },
)
