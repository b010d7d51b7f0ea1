"""What every expert says about a split, computed once. May import `experts` and what lies below it."""
