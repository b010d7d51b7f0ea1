"""What a front is worth beside baselines, and what can be promised of it. May import `models` and what lies below."""
