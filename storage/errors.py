"""Everything that storage raises on purpose; each message is one sentence a user can act on."""


class StorageError(Exception):
    """Base of all errors of storage."""


class DatabaseError(StorageError):
    """The database cannot be opened, read or written."""


class SchemaTooNewError(DatabaseError):
    """The database was made by a newer nst than this one."""


class JobNotFoundError(StorageError):
    """No job has this id or name."""


class AmbiguousJobError(StorageError):
    """Several jobs fit one reference."""


class JobStateError(StorageError):
    """The life of a job does not allow this change."""


class WorkspaceError(StorageError):
    """A folder or file cannot be made, read or written, or its place is already taken."""
