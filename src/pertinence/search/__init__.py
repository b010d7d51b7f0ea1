"""From experts and images to a front of operating points. May import `evaluation` and what lies below it."""
