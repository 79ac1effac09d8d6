"""Experts come and go while the system runs."""
