"""The model that users run: loading, saving, forward. May import `hub` and what lies below it."""
