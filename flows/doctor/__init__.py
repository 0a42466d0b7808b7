"""What is wrong with this machine and its service, and how to mend it."""
