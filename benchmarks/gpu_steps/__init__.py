"""The steps of gpu.py, each run in its own process.

``plan`` lists them, ``context`` is what each is given: sizes, folders, a file for its lines.
``device`` is the GPU, real or simulated, and ``trace`` what its profiler saw. ``pictures``
makes images, ``material`` studies of them. Every other module holds one step or two.
"""
