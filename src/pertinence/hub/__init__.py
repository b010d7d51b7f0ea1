"""Saved models: configuration, files, card, pushing to the Hub. May import `predictions` and what lies below it."""
