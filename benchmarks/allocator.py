"""What it costs on the CPU that glibc hands freed activations back to the system.

Trains MobileNetV2 (random weights, 32 images of 224 px a step, one thread) in two processes, one
with glibc's defaults and one with the settings of a process that trains, and prints
the CPU seconds of both and their ratio.

    python benchmarks/allocator.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

import timm
import torch

from autotune.runtime import tune_malloc

STEPS = 4


def train(keeps_memory: bool) -> dict[str, float]:
    """Train some steps; return the CPU seconds of one, and the memory at most."""
    if keeps_memory:
        tune_malloc()
    torch.set_num_threads(1)
    model = timm.create_model("mobilenetv2_100", num_classes=2).train()
    images = torch.randn(32, 3, 224, 224)
    for step in range(2 + STEPS):
        if step == 2:  # the steps before are for warming up
            before = resource.getrusage(resource.RUSAGE_SELF)
        torch.autograd.backward(model(images).sum())
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user": (after.ru_utime - before.ru_utime) / STEPS,
        "system": (after.ru_stime - before.ru_stime) / STEPS,
        "peak_gib": after.ru_maxrss / 2**20,
    }


def measure(which: str) -> dict[str, float]:
    """Train in a process of its own."""
    output = subprocess.run(
        [sys.executable, __file__, "--train", which],
        env={key: value for key, value in os.environ.items() if "MALLOC" not in key},
        capture_output=True,
        text=True,
        check=True,
    )
    values: dict[str, float] = json.loads(output.stdout)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", choices=["plain", "kept"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.train == "kept")))
        return
    plain, kept = measure("plain"), measure("kept")
    print("CPU seconds per training step, one thread   user  system  total  peak GiB")
    for title, one in (("glibc's defaults", plain), ("freed memory is kept", kept)):
        total = one["user"] + one["system"]
        print(
            f"{title:<42} {one['user']:5.2f} {one['system']:7.2f} {total:6.2f} "
            f"{one['peak_gib']:9.2f}"
        )
    ratio = (plain["user"] + plain["system"]) / (kept["user"] + kept["system"])
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
