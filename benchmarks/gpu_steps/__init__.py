"""The steps of gpu.py, each run in its own process.

``plan`` lists them, ``context`` is what each is given: sizes, folders, a file for its lines.
``device`` is the GPU, real or simulated, and ``trace`` what its profiler saw. ``material``
makes images and studies of them. Every other module holds one step or two, and has their name.
"""
