"""Layer 0: words and ground everything else stands on. Imports nothing of this project outside this folder."""
