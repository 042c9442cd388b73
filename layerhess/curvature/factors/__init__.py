"""The matrices whose spectra are asked for."""
