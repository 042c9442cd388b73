"""The ways to compute a block's eigenpairs; error bounds come from :mod:`layerhess.linalg.bounds` for all of them.

- "exact": Lanczos or a dense matrix on exact products, see :mod:`layerhess.analysis.paths.exact`.
- "factors": the same on products by factors, where a check allows them (:mod:`layerhess.checks.factors`).
- "gram": complete spectra by Gram matrices of the factors' rows (:mod:`layerhess.analysis.paths.gram`).
- "differences": Lanczos or a dense matrix on differences of gradients (:mod:`layerhess.curvature.difference_graph`).
- "auto": factors where they are allowed, and Gram matrices where they are cheaper
  (:mod:`layerhess.analysis.paths.cost`).
"""

PATHS = ("auto", "exact", "factors", "gram", "differences")
