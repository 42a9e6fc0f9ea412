"""From files on disk to a model whose every weight has a known origin: readers, ledger, build."""
