"""What `python -m trainer train` does: the job, its programs, where it resumes, and the loop."""
