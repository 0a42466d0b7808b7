"""What happens when: settings, the flow of a job, what a run shows, and the command `nst`."""
