"""What passes from teacher to student: one paper's idea per file."""
