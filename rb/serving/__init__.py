"""A trained model behind HTTP: the engine that batches requests, the endpoints of ``rb serve``, and the page of ``rb demo``."""
