"""Labelled photos → a model folder. Needs the ``train`` extra (torch)."""
