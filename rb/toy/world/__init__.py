"""The scenes of the toy world, their descriptions, and whether a sentence is true of a scene."""
