"""Two small Gemma 3 models of one invented world, with known causes for every answer; see :mod:`.facts`, :mod:`.tasks`.

``small-world-s`` and ``small-world-m`` are trained from scratch, each with a cross-layer and a per-layer transcoder,
by ``circuits small-world train`` (:mod:`.build`), and bundled.
"""
