"""Ways to candidate eigenpairs of a block; each only proposes, :mod:`layerhess.linalg.bounds` decides.

- "exact": Lanczos or a dense matrix on exact products, see :mod:`layerhess.analysis.paths.exact`.
- "factors": the same on products by factors, where a block has a licence for them (:mod:`layerhess.checks.factors`).
- "gram": complete spectra by Gram matrices of the factors' rows (:mod:`layerhess.analysis.paths.gram`).
- "auto": factors where there is a licence, and Gram matrices where they are cheaper
(:mod:`layerhess.analysis.paths.cost`).
"""

PATHS = ("auto", "exact", "factors", "gram")
