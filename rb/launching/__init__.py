"""Starting a training on one node or several, watching it, and ending it everywhere when something is wrong anywhere."""
