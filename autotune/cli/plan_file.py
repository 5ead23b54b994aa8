"""A plan in a file: what ``autotune best`` prints, or the record of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from autotune.config.safe_yaml import LimitError, parse_yaml, read_yaml_text
from autotune.errors import UserError
from autotune.format_versions import MODEL, check_format

if TYPE_CHECKING:
    from autotune.plan import TrialPlan

#: Limits the size of a record.json that is read for its plan.
MAX_JSON_BYTES = 1 << 26


def read_plan(path: Path, also: str = "") -> tuple[TrialPlan, int | None]:
    """Read a plan and its image size, if there is one, from YAML or JSON.

    Args:
        path: The file of ``--plan``.
        also: What else ``--plan`` may be, for the message.

    Raises:
        UserError: When the file cannot be read or has no plan.
    """
    from autotune.plan import TrialPlan

    rule = (
        f"--plan must be {also}a file that holds a plan: what 'autotune best' prints, the "
        "record.json of a fit, or TrialPlan.to_json()"
    )
    try:
        values: Any
        # The YAML reader takes 1e-05 for a text, and no record of a model with many classes.
        if path.suffix.lower() == ".json" and path.stat().st_size <= MAX_JSON_BYTES:
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            values = parse_yaml(read_yaml_text(path))
    except OSError as error:
        raise UserError(f"{rule}; cannot read {str(path)!r}: {error.strerror}") from error
    except LimitError as error:
        raise UserError(f"{rule}; of {str(path)!r} {error}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{rule}; {str(path)!r} is neither YAML nor JSON") from error
    values = values if isinstance(values, dict) else {}
    versions = values.get("versions")
    version = versions.get("autotune") if isinstance(versions, dict) else None
    check_format({"format": values.get("format"), "autotune": version}, MODEL, str(path))
    try:
        plan = TrialPlan.from_json(values.get("plan", values))
    except KeyError as error:
        raise UserError(f"{rule}; {str(path)!r} has no {error}") from error
    except TypeError as error:
        raise UserError(f"{rule}; {str(path)!r} has a wrong one ({error})") from error
    size = ((values.get("definition") or {}).get("data") or {}).get("image_size")
    return plan, plan.image_size or (size if isinstance(size, int) else None)
