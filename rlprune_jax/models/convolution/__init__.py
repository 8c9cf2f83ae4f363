"""Operators lowered for the backend they run on."""
