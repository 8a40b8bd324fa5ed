"""The commands of ``circuits``, one file each; :mod:`circuits.cli` registers them."""
