"""The HTTP server: requests, batches, limits, metrics, and the controller that moves along the front under load. May
import `evaluation` and what lies below it."""
