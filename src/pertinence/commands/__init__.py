"""The command line: parse, call the Python API, print. May import everything."""
