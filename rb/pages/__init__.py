"""HTML pages for people: report, gallery, comparison, data and validation samples. Drawn with ``rb/drawing``."""
