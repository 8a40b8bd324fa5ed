"""Folders of traced prompts in, what they have in common out: tables, figures and a page."""
