"""What nst remembers: the database of jobs and the folders on disk that hold their files."""
