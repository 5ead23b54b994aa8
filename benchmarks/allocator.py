"""What it costs on the CPU that glibc hands freed activations back to the system.

Trains MobileNetV2 (random weights, 32 images of 224 px a step, one thread) in two processes, one
with glibc's defaults and one with the settings of a process that trains, and prints
the CPU seconds of both and their ratio.

    python benchmarks/allocator.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

STEPS = 4
SCRIPT = f"""
import json, resource, sys, timm, torch
from autotune.runtime import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
model = timm.create_model("mobilenetv2_100", num_classes=2).train()
images = torch.randn(32, 3, 224, 224)
for _ in range(2):
    model(images).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range({STEPS}):
    model(images).sum().backward()
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{
    "user": (after.ru_utime - before.ru_utime) / {STEPS},
    "system": (after.ru_stime - before.ru_stime) / {STEPS},
    "peak_gib": after.ru_maxrss / 2**20,
}}))
"""


def measure(how: str) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if "MALLOC" not in key}
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    values: dict[str, float] = json.loads(output.stdout)
    return values


def main() -> None:
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
