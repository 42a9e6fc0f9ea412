"""Former names of commands: ``python -m eval.predict | score | table | report | compare`` are ``rb predict`` and so on."""
