"""The demo: everything once, from nothing, offline: three small experts, a search, and the model that came out, used."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from .arguments import SearchArguments
from .data import stratified_split
from .errors import PertinenceError
from .progress import progress_bar
from .search import DispatcherSearch


SIZE = 32
MEAN, STD = (0.5,) * 3, (0.5,) * 3
LABELS = [str(digit) for digit in range(10)]
