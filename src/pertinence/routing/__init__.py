"""The policy: evidence, heads, operating points, routes; on NumPy arrays (`sweep.py` and what it imports, which never
imports torch), and on tensors (`policy.py`, `dispatcher.py`, `confidence.py`). May import `utils`."""
