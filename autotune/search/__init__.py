"""Which plan is tried next: the space, samplers, pruners, plugins."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "CanonicalSampler": "samplers",
        "Space": "space",
        "make_pruner": "pruners",
        "make_sampler": "samplers",
    },
)
