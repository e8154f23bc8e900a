"""The jobs, each a command: the only package that uses Ray, URLs, run folders and terminals."""
