"""Tables of the papers: many jobs, shared teachers, the printed numbers beside ours."""
