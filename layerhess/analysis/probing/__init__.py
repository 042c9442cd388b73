"""Random probes shared by all blocks and by every estimator that can use them."""
