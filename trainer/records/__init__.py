"""What a run leaves behind of every step, for programs and for people."""
