"""The search for a Pareto front of operating points. May import `evaluation` and what lies below it."""
