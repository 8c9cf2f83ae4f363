"""The command line: ``rlprune prune | sap | study | predict | inspect``.

Options are read and wrong ones answered before JAX is imported.
"""
