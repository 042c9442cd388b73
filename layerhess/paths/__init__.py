"""Ways to candidate eigenpairs of a block; each only proposes, :mod:`layerhess.bounds` decides.

- "exact": Lanczos or a dense matrix on exact products, see :mod:`layerhess.paths.exact`.
- "factors": the same on products by factors, where a block has a licence for them (:mod:`layerhess.checks.licence`).
- "auto": factors where there is a licence.
"""

PATHS = ("auto", "exact", "factors")
