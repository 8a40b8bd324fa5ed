"""Comparing circuits of several models: what their features mean in the vocabulary and on text that they share."""
