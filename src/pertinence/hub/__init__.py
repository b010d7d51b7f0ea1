"""What a saved model is: its configuration, files and card, and how it is pushed. May import `predictions` and what
lies below it.
"""
