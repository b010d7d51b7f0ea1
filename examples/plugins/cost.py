"""A unit of cost of your own: megabytes of weights that one image needs.

    pertinence search --plugins cost --cost megabytes ...

An accelerator that gets single images waits for weights more than for arithmetic. Each expert that runs counts as its
backend stores it, so 8-bit experts count less. Activations do not count, and nothing is saved for a batch, which reads
weights once: this is what is moved at least, not a measured time or energy.
"""

from pertinence import register_cost
from pertinence.routing.costs import Cost


class Megabytes(Cost):
    name, title, unit = "megabytes", "MB", "megabytes of weights"
    depends_on_backend = True

    def measure(self, experts, how):
        return [expert.network.memory / 1e6 for expert in experts]

    def of_head(self, weights):
        return 4 * weights / 1e6  # heads are float32


register_cost(Megabytes())
