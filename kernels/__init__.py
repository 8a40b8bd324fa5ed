"""Operations on plain tensors, one per file, that neither know models nor graphs.

``encode`` (encoder product, threshold and compaction), ``attention`` (transposed frozen attention), ``edges``
(gradients contracted with gathered decoder vectors) and ``compact`` (dense rows to sparse ones) each hold a PyTorch
reference, which runs on CPUs, and a Triton kernel; ``choice`` says which of the two runs, ``products`` multiplies into
given memory.
"""
