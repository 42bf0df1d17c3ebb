"""Running a launcher: its folder, its files, its processes, and what made a result."""
