"""Files, downloads, processes and checks of values.

Knows nothing of images or experts, and imports no other package of pertinence.
"""
