"""Tables of the papers: many jobs, shared teachers, printed numbers beside measured ones."""
