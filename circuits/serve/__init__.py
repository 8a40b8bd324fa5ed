"""The local server: a gallery of saved graphs, a form that traces new ones, pages that steer, and the API that all use.

Needs the extra ``gemma-circuits[serve]``. Importing this package imports neither FastAPI nor torch; the model is loaded
by the first trace or question.
"""
