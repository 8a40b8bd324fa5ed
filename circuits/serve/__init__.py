"""The local server: a gallery of saved graphs, a form that traces new ones, and the API that both use.

Needs the extra ``gemma-circuits[serve]``. Importing this package imports neither FastAPI nor torch; the model is loaded
by the first trace.
"""
