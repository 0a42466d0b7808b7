"""The gallery: a web page of jobs, results and collections, which reads and never writes."""
