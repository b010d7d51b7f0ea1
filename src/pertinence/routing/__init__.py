"""The policy, on arrays and tensors alone: evidence, heads, operating points, routes. May import `utils`."""
