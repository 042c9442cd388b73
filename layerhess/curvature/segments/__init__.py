"""Segments of a network that keep their inputs only: what memory a Hessian's products take becomes that of one segment.

- :mod:`layerhess.curvature.segments.recomputed`: functions whose derivatives, of any order, run them again.
- :mod:`layerhess.curvature.segments.call`: one call of modules as such a function.
- :mod:`layerhess.curvature.segments.found`: which modules of a network are its segments.
- :mod:`layerhess.curvature.segments.segmented`: graphs of batches, made in segments.
"""
