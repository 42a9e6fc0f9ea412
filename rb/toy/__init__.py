"""The toy world: a miniature that the whole chain runs on, with its own pre-trained foundation."""
