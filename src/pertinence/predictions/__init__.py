"""The outputs of every expert on a split, computed once. May import `experts` and what lies below it."""
