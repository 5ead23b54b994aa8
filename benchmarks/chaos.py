"""Does a study come out right while everything around it breaks?

Runs a small real study with worker processes, and meanwhile, at random moments, does what the
options count: kills workers one by one, in pairs, in triples and at their claims, kills launchers
and starts second ones, removes the cache or parts of it, flips bits of checkpoints and cuts them
off, puts checkpoints of a deleted study in their place, freezes workers, fills the disk of their
files, restarts or crashes the Postgres server, or holds SQLite's write lock. Before it, studies of
the same name and another definition are run, killed in mid-trial and deleted.

Then everything must be as if nothing had happened: the budget exact, no number twice, no plan
trained to the end twice, nothing left running or queued, every finished trial and every attempt
at it with the values of an undisturbed training of its plan, epoch by epoch and bit by bit, every
file whole, and every end of a run one message. Prints what was done and found; ends with exit code
1 where something is wrong.

    python benchmarks/chaos.py --storage sqlite --faults 200 --seed 1
    python benchmarks/chaos.py --storage postgres --faults 200 --crashes 5 --restarts 5
    python benchmarks/chaos.py --storage sqlite --kills 100 --locks 1 --long-locks 1 --fills 2

``--faults`` shares a number out among all kinds that take a few seconds; what is counted besides
comes on top. Freezes begin as soon as trials run, before anything else is done. Whoever finds the
frozen worker silent gives its trial back, at the latest 'autotune doctor --fix' just before it
wakes. Disks are filled while somebody trains, and not while the database is locked.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos_checks import bad_ends, broken_files, faults, lines_in_logs, still_running
from chaos_faults import NAME, Chaos, of_storage

from autotune.storage.admin import local_postgres

#: Small trainings of a few seconds, so that most kills meet a trial in the middle.
STUDY = (
    "training.epochs=24",
    "training.num_views=2",
    "data.train_per_class=10",
    "data.validation=0.2",
    "data.image_size=16",
    "search.sampler=tpe",
    "search.pruner=percentile",
)
#: Definitions of studies that are deleted: other rates, seeds, images.
OTHERS = (("baseline.lr=0.5",), ("search.seed=5",), ("data.train_per_class=9",))
#: What ``--faults`` is shared out among, with its weights.
SHARES = {
    "kill": 6,
    "pair": 4,
    "triple": 4,
    "claim": 4,
    "cache": 4,
    "corrupt": 3,
    "stale": 2,
    "second": 2,
    "launcher": 2,
}
#: Size of the disk that is filled: the doctor asks for 1 GB of free space.
DISK_MIB = 1200
#: So often at most a run is started.
STARTS = 60
#: What is counted by its own option: its plural, and what is to be known of it.
OPTIONS = {
    "kill": ("kills", "of single workers"),
    "pair": ("pairs", "of workers, killed at once"),
    "triple": ("triples", "of workers, killed at once"),
    "claim": ("claims", "at which workers are killed"),
    "cache": ("caches", "removed, wholly or in part"),
    "corrupt": ("corruptions", "of checkpoints: a bit flipped, or cut off"),
    "stale": ("stales", "checkpoints of a deleted study, with --remakes"),
    "remake": ("remakes", "studies of the name that are run, killed and deleted before"),
    "second": ("seconds", "launchers that join"),
    "launcher": ("launchers", "killed"),
    "freeze": ("freezes", "108 s each, at the beginning"),
    "fill": ("fills", "of the disk of the files, 20 s each"),
    "restart": ("restarts", "of the Postgres server"),
    "crash": ("crashes", "of the Postgres server"),
    "lock": ("locks", "of SQLite, 20 to 30 s each"),
    "long lock": ("long-locks", "of SQLite, 108 s each"),
}


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk, where that is allowed; tell whether it is."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run(chaos: Chaos, workers: int, pause_s: float) -> list[int]:
    """Run the study to its end, starting it again where the launcher gave up; return the codes."""
    for number in range(chaos.left["remake"]):
        chaos.delete_another(*OTHERS[number % len(OTHERS)])
    while True:
        launcher = chaos.launch("--workers", str(workers))
        while launcher.poll() is None:
            time.sleep(chaos.rng.expovariate(1 / pause_s))
            if chaos.left and launcher.poll() is None:
                chaos.strike()
        if launcher.returncode == 0 or len(chaos.launchers) >= STARTS:
            break
    for one in chaos.passing:
        one.join()
    return [launcher.wait() for launcher in chaos.launchers]


def wanted_of(options: argparse.Namespace) -> Counter[str]:
    """Count what is to be done."""
    wanted = Counter({kind: getattr(options, kind.replace(" ", "_")) for kind in OPTIONS})
    for number in range(options.faults):
        of_all = number * sum(SHARES.values()) // max(1, options.faults)
        kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
        wanted[kinds[of_all]] += 1
    if wanted["stale"]:
        wanted["remake"] = max(1, wanted["remake"])
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--faults", type=int, default=0, help="of all quick kinds together")
    for kind, (plural, about) in OPTIONS.items():
        name = kind.replace(" ", "_")
        parser.add_argument(f"--{plural}", dest=name, type=int, default=0, help=about)
    parser.add_argument("--pause", type=float, default=3.0, help="mean seconds between two")
    parser.add_argument("--seed", type=int, default=0, help="of moments, kinds and victims")
    options = parser.parse_args()
    # Not below a long path: that of a socket has at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as name,
        small_disk(Path(name) / "files") as mounted,
    ):
        folder = Path(name)
        url = f"sqlite:///{folder}/storage/chaos.db"
        if options.storage == "postgres":
            url = local_postgres.start(folder / "postgres")
        wanted = of_storage(url, wanted_of(options))
        if wanted["fill"] and not mounted:
            print("no disk is filled: this machine lets this user mount none")
            del wanted["fill"]
        command = [sys.executable, "-m", "autotune", "run", "digits", *STUDY]
        command += [f"search.trials={options.trials}", f"files={folder / 'files'}"]
        command += ["--name", NAME]
        rng = random.Random(options.seed)
        chaos = Chaos(url, folder, folder / "files", command, rng, +wanted)
        print(f"seed {options.seed}: {dict(chaos.left)}", flush=True)
        start = time.perf_counter()
        try:
            codes = run(chaos, options.workers, options.pause)
            took = time.perf_counter() - start
            outputs = [chaos.output_of(number) for number in range(len(codes))]
            found = [
                *bad_ends(outputs, codes, chaos.killed),
                *still_running(folder),
                *faults(url, options.trials),
                *broken_files(chaos.files, url),
            ]
        finally:
            if options.storage == "postgres":
                local_postgres.stop(folder / "postgres")
        for number, code in enumerate(codes):
            if code and number not in chaos.killed:
                *_, last = chaos.output_of(number).read_text().strip().splitlines()
                print(f"start {number} ended with code {code}: {last[:300]}")
        done = ", ".join(f"{count} x {kind}" for kind, count in chaos.done.items()) or "nothing"
        print(f"{options.storage}, {options.workers} workers, {options.trials} trials: {done}")
        print(f"{took:.0f} s; launchers were started {len(codes)} times, exit codes {codes}")
        for words in ("was given to another worker; dropped here", "starting afresh"):
            print(f"{lines_in_logs(chaos.files, words)} x {words!r} in the logs")
        if (folder / "doctor.txt").exists():
            print("the doctor, before they did:\n" + (folder / "doctor.txt").read_text())
        if chaos.left:
            print(f"not done before the end: {dict(chaos.left)}")
        print(f"{chaos.done.total()} faults, {len(found)} violations")
        print("\n".join(found) if found else "no fault found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
