"""The backbones that can take part in a race: those whose weights can be had here."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field, replace

from autotune.config.backbones import AUTO, LARGE, SMALL
from autotune.config.schema import StudyConfig
from autotune.config.weights import HUB, NONE
from autotune.data.preprocessing import ImageSpec
from autotune.data.splits.dataset import Dataset
from autotune.errors import BackboneError, ConfigError, Problem, UserError
from autotune.models.backbone import (
    HubError,
    build_backbone,
    license_of,
    load_backbone,
    weights_at_hand,
)
from autotune.models.pretrained.names import check_name
from autotune.models.pretrained.packages import OFFLINE_BACKBONE, PACKAGES, find_package, offer
from autotune.study.devices import visible_gpus
from autotune.study.engine.launcher import resolve_gpus
from autotune.study.race.duration import count_macs, race_seconds
from autotune.study.state.constraints import violations
from autotune.study.state.race_record import RaceEntry, describe_left_out
from autotune.study.trial.run import EventCallback
from autotune.text import error_line, first_line, format_duration, join_some, plural

#: Least memory of a GPU for the list of large backbones: a batch of 32 images of ConvNeXt-Base
#: with its gradients takes about 8 GB.
LARGE_GPU_MIB = 10_000
#: Bytes of a parameter in a file of weights.
_BYTES = 4


def suitable_list(gpus: str | None, gpus_per_worker: float | None = None) -> str:
    """Return the default list for the devices of a run: ``large`` for GPUs with much memory.

    Args:
        gpus: ``--gpus``; ``none`` trains on the CPU.
        gpus_per_worker: GPUs that Ray gives each worker, if it is asked for any.
    """
    if gpus_per_worker:
        return LARGE
    names = resolve_gpus(gpus) if gpus is not None or visible_gpus() else ()
    if not names or shutil.which("nvidia-smi") is None:
        return SMALL
    query = "--query-gpu=index,uuid,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:  # torch would have to open a context on each GPU
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        rows = [line.split(", ") for line in text.stdout.splitlines()]
        sizes = {(index, uuid): int(size) for index, uuid, size in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return SMALL
    chosen = [
        size
        for (index, uuid), size in sizes.items()
        if any(name == index or uuid.startswith(name) for name in names)
    ]
    # An instance of a GPU (MIG) has another name.
    return LARGE if min(chosen or sizes.values(), default=0) >= LARGE_GPU_MIB else SMALL


@dataclass
class Entrants:
    """Looks for the backbones of a race, and loads their weights once.

    Args:
        config: The study file.
        listed: The default list; empty where the study file has the names.
    """

    config: StudyConfig
    listed: str
    entries: list[RaceEntry] = field(default_factory=list)
    packaged: list[str] = field(default_factory=list)
    _sources: dict[str, str] = field(default_factory=dict)
    _loaded: set[str] = field(default_factory=set)
    _macs: dict[str, int] = field(default_factory=dict)
    _hub_error: HubError | None = None

    def look(self) -> None:
        """Check names, sizes and limits, without the weights.

        Raises:
            ConfigError: With every name of the study file that is no backbone.
        """
        problems: list[Problem] = []
        if problem := self.config.race_weights_problem():
            problems.append(Problem("weights", problem))
        left_out: dict[str, str] = {}
        assert self.config.race is not None
        names = self.config.race.names(self.listed)
        for name in names:
            try:
                check_name(name)
            except BackboneError as error:
                if not self.listed:
                    problems.append(Problem("backbone", str(error)))
                left_out[name] = first_line(error)
        if problems:  # before the backbones are built, which takes seconds
            raise ConfigError(self.config.name or "study", problems)
        for name in names:
            is_known = name not in left_out
            entry = self._look_at(name) if is_known else RaceEntry(name, left_out=left_out[name])
            self.entries.append(entry)

    def _look_at(self, name: str) -> RaceEntry:
        weights = self.config.weights_of(name)
        self._sources[name] = (weights_at_hand(name) or HUB) if weights == HUB else weights
        license = license_of(name) if weights == HUB else ""
        try:
            sizes = self.config.image_sizes
            model, *_ = [build_backbone(name, size, device="meta") for size in sizes]
        except BackboneError as error:
            return RaceEntry(name, left_out=first_line(error))
        with suppress(BackboneError):  # its time is not known then
            self._macs[name] = count_macs(model, sizes[0])  # the race has the largest size
        parameters = sum(parameter.numel() for parameter in model.parameters())
        limit = self.config.constraints.max_parameters
        limits = {} if limit is None else {"parameters": limit}
        beyond = violations({"parameters": parameters}, limits)
        return RaceEntry(name, parameters, license, left_out=beyond)

    @classmethod
    def of(
        cls, config: StudyConfig, gpus: str | None = None, gpus_per_worker: float | None = None
    ) -> Entrants:
        """Look at the backbones of a race, see :meth:`look`; the arguments are those of a run."""
        assert config.race is not None
        listed = config.race.entrants if isinstance(config.race.entrants, str) else ""
        if listed == AUTO:
            listed = suitable_list(gpus, gpus_per_worker)
        entrants = cls(config, listed)
        entrants.look()
        return entrants

    @property
    def running(self) -> list[RaceEntry]:
        """The backbones that were not left out so far, the smallest first."""
        entries = [entry for entry in self.entries if not entry.left_out]
        return sorted(entries, key=lambda entry: entry.parameters or 0)

    def describe_source(self, entry: RaceEntry) -> str:
        """Say where the weights of a backbone come from."""
        source = self._sources[entry.backbone]
        return {
            HUB: f"{(entry.parameters or 0) * _BYTES / 1e6:,.0f} MB from the hub",
            NONE: "no weights",
        }.get(source, f"weights: {source}")

    def describe(self) -> str:
        """Name the backbones, with the size of each download."""
        running = self.running
        where = f"the list {self.listed}" if self.listed else "the study file"
        names = (
            f"{entry.backbone} ({size / 1e6:,.0f} MB)"
            if (size := self._download_bytes(entry))
            else entry.backbone
            for entry in running
        )
        return f"{plural(len(running), 'backbone')} of {where}: {join_some([*names], 30)}"

    def describe_costs(self, dataset: Dataset | None, gpus: int) -> str:
        """Say about how long the race takes, and what it downloads; empty for a single backbone.

        Args:
            dataset: The images of the study; ``None`` where they are not known yet.
            gpus: GPUs that train; 0 for the CPU.
        """
        names, texts = [entry.backbone for entry in self.running], []
        macs = [self._macs[name] for name in names if name in self._macs]
        if dataset is not None and len(macs) > 1:
            seconds = race_seconds(self.config, dataset, macs, gpus)
            on = plural(gpus, "GPU") if gpus else "the CPU"
            texts.append(f"roughly {format_duration(seconds)} on {on}")
        if size := sum(map(self._download_bytes, self.running)):
            texts.append(f"{size / 1e6:,.0f} MB to download from the hub")
        return ", and ".join(texts)

    def _download_bytes(self, entry: RaceEntry) -> int:
        is_here = self._sources[entry.backbone] != HUB
        return 0 if is_here else (entry.parameters or 0) * _BYTES

    def load(self, on_event: EventCallback) -> None:
        """Load the weights of all; those that cannot be had are left out.

        Raises:
            UserError: When none is left.
        """
        self._load_all(on_event)
        if self._hub_error is not None and self.listed:
            known = {entry.backbone for entry in self.entries}
            others = [name for name in PACKAGES if name not in known and find_package(name)]
            self.entries += [self._look_at(name) for name in others]
            self._load_all(on_event)
        self.check_any()

    def check_any(self) -> None:
        """Raise a UserError when no backbone is left, with the reasons and what can be had."""
        if self.running:
            return
        lines = [f"  {line}" for line in describe_left_out(self.entries)]
        if self._hub_error is not None:
            lines.append(
                f"{offer(OFFLINE_BACKBONE)}; or download weights elsewhere and give their file: "
                "backbone=resnet18 weights=path/to/file.safetensors"
            )
        raise UserError("\n".join(["no backbone of the race can be had:", *lines]))

    def _load_all(self, on_event: EventCallback) -> None:
        for index, entry in enumerate(self.entries):
            if entry.left_out or entry.backbone in self._loaded:
                continue
            on_event({"event": "race_step", "text": f"race: the weights of {entry.backbone}"})
            if reason := self._load(entry.backbone):
                self.entries[index] = replace(entry, left_out=reason)
            else:
                self._loaded.add(entry.backbone)

    def _load(self, name: str) -> str:
        """Load the weights of a backbone; return why they cannot be had."""
        if self._hub_error is not None and self._sources[name] == HUB:
            return self._unreachable()
        size = self.config.image_sizes[0]
        try:
            loaded = load_backbone(
                name, self.config.weights_of(name), size, self._hub_error is not None
            )
            ImageSpec.from_data_config(loaded.data_config, size)
        except HubError as error:
            self._hub_error = error
            return self._unreachable()
        except UserError as error:
            return first_line(error).removeprefix("weights: ")
        if loaded.package:
            self.packaged.append(name)
        return ""

    def _unreachable(self) -> str:
        assert self._hub_error is not None
        cause = self._hub_error.__cause__
        return f"the hub cannot be reached ({error_line(cause)})" if cause else "no hub"
