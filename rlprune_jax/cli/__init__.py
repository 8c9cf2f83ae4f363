"""The command line ``rlprune`` and its subcommands.

They are ``prune``, ``sap``, ``study``, ``predict`` and ``inspect``. Options are read and wrong ones
answered before JAX is imported.
"""
