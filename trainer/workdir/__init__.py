"""Where the files of a run lie, local or in a bucket, and the lock that keeps it to one trainer."""
