"""One checkpoint as an expert: checked, loaded, preprocessed, priced. May import `routing` and what lies below it."""
