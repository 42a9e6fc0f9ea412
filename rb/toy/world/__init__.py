"""The scenes of the toy world, what is said of them, and whether a sentence is true."""
