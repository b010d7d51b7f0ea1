"""The record of a search, stored as `search_result.json`."""

from __future__ import annotations

import platform
import time
from typing import Any

import accelerate
import datasets
import numpy as np
import pymoo
import timm
import torch
import torchvision
import transformers
from accelerate import Accelerator

from .._version import __version__
from .arguments import SearchArguments
from .front_search import FoundFront


def record_of(found: FoundFront, settings: dict[str, Any], args: SearchArguments) -> dict[str, Any]:
    """The record: settings, versions, and everything that was evaluated and measured."""
    evaluation = found.evaluation.to_dict()
    baselines = evaluation.pop("baselines")
    return {
        "settings": settings,
        "seed": args.seed,
        "measure": found.evaluation.experts[0].measure,
        "versions": versions(),
        "images": {
            **found.images,
            "report_from": "report split" if settings["images"]["report"] else "held out of the search split",
        },
        "evaluated": found.evaluated,
        "hypervolumes": found.hypervolumes,
        "recipes": found.recipes,
        "front": found.evaluation.front.to_list(),
        "experts": [figures.to_dict() for figures in found.select_experts],
        "baselines": baselines,
        "report": evaluation,
    }


def run_facts(start: float, predicted: float, accelerator: Accelerator, args: SearchArguments) -> dict[str, Any]:
    """The facts that differ between runs of the same search: time, host, processes."""
    now = time.perf_counter()
    seconds = {"predictions": predicted - start, "search": now - predicted, "total": now - start}
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "host": {"platform": platform.platform(), "device": str(accelerator.device)},
        "processes": accelerator.num_processes,
        "batch_size": args.batch_size,
    }


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that affect a search."""
    modules = (torch, torchvision, transformers, timm, datasets, accelerate, pymoo, np)
    return {"pertinence": __version__, "python": platform.python_version()} | {
        m.__name__: m.__version__ for m in modules
    }
