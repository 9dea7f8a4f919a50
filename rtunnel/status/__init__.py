"""What a running process tells about itself: a model of it, and who shows it."""
