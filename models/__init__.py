"""Networks, scorers and the physics they share, one idea a file."""
