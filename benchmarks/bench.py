"""Measure what the defence costs, print a table and write it as JSON."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.measures import Sizes

#: What each figure should reach; a ratio, but for the seconds of `import_pdutils` and of the page's
#: `first_look`, `crowd` and `alone`.
TARGETS = {
    "pd_200": ">= 6",
    "pd_1500": ">= 8",
    "pd_batch_1500_map": ">= 20",
    "wd_batch": ">= 4",
    "defended_resnet50": "<= 1.05",
    "defended_rcam_resnet50": "<= 2.10",
    "defended_mobilenet_v2": "<= 1.20",
    "authors_folder": ">= 1.4",
    "comparison": ">= 1",
    "attack_igsm": "<= 1.15",
    "attack_deepfool": "<= 1.3",
    "attack_carlini_wagner": "<= 1.3",
    "attack_bpda": "<= 1.3",
    "evaluate_overhead": "<= 1.25",
    "folder_overhead": "<= 1.15",
    "import_pdutils": "<= 0.5",
    "peak_memory_folder": "<= 1.1",
    "page_memory": "<= 1.5",
    "page_first_look": "<= 1.5",
    "page_crowd": "<= 1",
    "page_alone": "<= 0.3",
}

#: Where the defended model runs beside a GPU's plain one, its targets are others.
GPU_TARGETS = {
    "defended_resnet50": "<= 1.25",
    "defended_rcam_resnet50": "<= 2.3",
    "defended_mobilenet_v2": "<= 1.25",
}

FULL: dict[str, Any] = {
    "repeats": 7,
    "seconds": 0.05,
    "batch": 32,
    "folder": 128,
    "steps": 5,
    "memory": (2000, 200),
    "memory_repeats": 2,
    "visitors": 30,
    "page_moves": 20,
    "crowd_seconds": 60,
    "photos": 16,
}
QUICK: dict[str, Any] = FULL | {
    "repeats": 3,
    "batch": 8,
    "folder": 32,
    "steps": 2,
    "memory": (400, 100),
    "memory_repeats": 1,
    "visitors": 10,
    "page_moves": 10,
    "crowd_seconds": 20,
    "photos": 8,
}

_OUTPUT = Path(__file__).resolve().parents[1] / "results" / "bench.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0, whether or not a figure reaches its target.
    """
    options = _parser().parse_args(arguments)
    # The folder command runs beside this process and needs a share of the GPU.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    from benchmarks.measures import Sizes

    head = header()
    sizes = Sizes(**(QUICK if options.quick else FULL))
    print(f"{head['processor']}, {head['cores']} cores; {head['device']}", file=sys.stderr)
    # A whole run replaces what an earlier one, of other code perhaps, has left.
    report = _earlier(options.output, head) if options.only else dict(head)
    entries = measured(options.only or list(TARGETS), sizes, report, options.output)
    print(table(entries))
    print(f"written: {options.output}", file=sys.stderr)
    return 0


def measured(
    keys: Sequence[str], sizes: "Sizes", report: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Measure some keys; what is finished is in the file, whatever becomes of the rest.

    Parameters
    ----------
    keys : sequence of str
        Of `TARGETS`.
    sizes : Sizes
        How much is measured.
    report : dict
        As `header` gives it, with the entries that are there already; it gets the new ones.
    output : Path
        The file, written anew after each key.

    Returns
    -------
    dict
        The entries of these keys.
    """
    from benchmarks.measures import MEASURES
    from pdutils._utils import whole_file

    targets = _targets(report)
    for number, key in enumerate(keys, 1):
        print(f"[{number}/{len(keys)}] {key} ...", end=" ", file=sys.stderr, flush=True)
        start, load = time.perf_counter(), os.getloadavg()[0]
        found = MEASURES[key](sizes)
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        settings = {**found.settings, "load_at_start": round(load, 2), "finished": moment}
        report[key] = {**found.summary(), "target": targets[key], "settings": settings}
        with whole_file(output) as path:
            path.write_text(json.dumps(_ordered(report), indent=1) + "\n")
        took = time.perf_counter() - start
        print(f"{found.summary()['value']:.3g} ({took:.0f} s)", file=sys.stderr)
    return {key: report[key] for key in keys}


def header() -> dict[str, Any]:
    """Describe versions, processor and device.

    Returns
    -------
    dict
    """
    from benchmarks.measures import cores
    from pdutils._utils import processor

    packages = ("numpy", "tensorflow", "keras", "scikit-image")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "processor": processor(),
        "cores": cores(),
        "device": _device(),
    }


def table(entries: dict[str, Any]) -> str:
    """Lay entries out as a table.

    Parameters
    ----------
    entries : dict
        As `measured` gives them.

    Returns
    -------
    str
    """
    lines = [f"{'key':24} {'value':>8} {'min':>8} {'max':>8}  target"]
    for key, entry in entries.items():
        numbers = " ".join(f"{entry[name]:8.3g}" for name in ("value", "min", "max"))
        verdict = "" if reached(entry) else "  missed"
        lines.append(f"{key:24} {numbers}  {entry['target']}{verdict}")
    return "\n".join(lines)


def reached(entry: dict[str, Any]) -> bool:
    """Tell whether an entry's value reaches its target.

    Parameters
    ----------
    entry : dict
        With `value` and `target`, such as ``>= 6`` or ``<= 0.5``.

    Returns
    -------
    bool
    """
    relation, bound = entry["target"].split()
    value: float = entry["value"]
    return value >= float(bound) if relation == ">=" else value <= float(bound)


def _targets(head: dict[str, Any]) -> dict[str, str]:
    return TARGETS | ({} if head["device"] == "CPU" else GPU_TARGETS)


def _earlier(output: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Begin with what an earlier run left, unless it describes something else."""
    if output.is_file():
        report: dict[str, Any] = json.loads(output.read_text())
        if head.items() <= report.items():
            return report
    return dict(head)


def _ordered(report: dict[str, Any]) -> dict[str, Any]:
    keys = [key for key in report if key not in TARGETS] + list(TARGETS)
    return {key: report[key] for key in keys if key in report}


def _device() -> str:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer repeats, smaller batches: a minute or two")
    add(
        "--only",
        metavar="KEY",
        action="append",
        choices=list(TARGETS),
        help=f"measure this one and keep the others; again for more: {', '.join(TARGETS)}",
    )
    add("--output", metavar="FILE", type=Path, default=_OUTPUT, help="(results/bench.json)")
    return parser
