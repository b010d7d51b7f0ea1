"""Evaluation of a front against baselines, and guarantees for it. May import `models` and what lies below it."""
