"""Several runs side by side: which, what differs, a table; the picture is drawn by `records`."""
