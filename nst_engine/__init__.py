"""The engine: pictures in, pictures out; it knows no job, no database and no scheduler."""
