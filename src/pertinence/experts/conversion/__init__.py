"""From a file of weights to an expert: read safely, matched with a network of timm, written and checked."""
