"""Recipes: methods that turn predictions into dispatchers. May import `evaluation` and what lies below it."""
