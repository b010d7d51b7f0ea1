"""A backend of your own: one expert computes in bfloat16, with half the memory, while the others stay as they are.

    import backend  # registers it; on the command line: --plugins backend
    experts = ["user/small", {"repo_id": "user/large", "backend": "bfloat16"}]

A saved model notes the name of the backend, and is loaded where this module has been imported before.
"""

import copy

import torch
from torch import nn

from pertinence import register_backend


class Bfloat16(nn.Module):  # a module, so that its weights move to a GPU with the model
    version = 1  # of what it computes: raise it when outputs change, and predictions that were kept are made anew
    devices = ("cpu", "cuda")
    fixed_dtype = torch.bfloat16  # whatever the model is cast to
    compiles = True

    def __init__(self, checkpoint, entry):
        super().__init__()
        self.network = copy.deepcopy(checkpoint.model).to(torch.bfloat16)
        self.options = checkpoint.call_options(entry.transform)  # for images smaller than it was made for

    @classmethod
    def is_offered(cls, checkpoint, cost_depends, device):
        """Tried by `--variants auto` where cost is time or memory: it takes as many operations."""
        return cost_depends

    @property
    def device(self):
        return next(self.network.parameters()).device

    @property
    def dtype(self):
        return torch.bfloat16

    @property
    def memory(self):
        return sum(parameter.numel() * parameter.element_size() for parameter in self.network.parameters())

    def compile(self, **options):
        self.network.compile(**options)

    def run(self, pixel_values):
        """Logits, and no pooled features: what decides reads statistics of the logits."""
        pixel_values = pixel_values.to(self.device, torch.bfloat16)
        return self.network(pixel_values=pixel_values, **self.options).logits, None


register_backend("bfloat16", Bfloat16)
