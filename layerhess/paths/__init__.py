"""Ways to candidate eigenpairs of a block; each only proposes, :mod:`layerhess.bounds` decides."""
