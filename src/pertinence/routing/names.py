"""Names of operating points that mean something, and how many a front may have."""

CHEAPEST_LOSSLESS = "cheapest-lossless"
BEST_BELOW_LARGEST = "best-below-largest"
MAX_POINTS = 10_000
FASTEST = "fastest"
MOST_ACCURATE = "most-accurate"
