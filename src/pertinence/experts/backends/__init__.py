"""Backends run the network of an expert: torch, torch in 8 bits, or a backend from outside the package."""
