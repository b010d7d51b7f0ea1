"""Labelled images: data sets, labels, splits, decoding. May import `utils`."""
