"""What passes from teacher to student: one paper's idea per file, with the methods built on it."""
