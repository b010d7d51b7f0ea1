"""Reserved names of operating points, and the largest size of a front."""

CHEAPEST_LOSSLESS = "cheapest-lossless"
BEST_BELOW_REFERENCE = "best-below-largest"
MAX_POINTS = 10_000
FASTEST = "fastest"
MOST_ACCURATE = "most-accurate"
