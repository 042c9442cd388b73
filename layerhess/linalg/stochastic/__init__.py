"""Ask/tell estimators of trace, diagonal, density and coupling from random probes."""
