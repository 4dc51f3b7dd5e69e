"""`sharpzo demo`: the whole service on real handwritten digits, in about a minute."""
