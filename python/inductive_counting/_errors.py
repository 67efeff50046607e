"""The exceptions of this package. Their texts are those of the ``pipeline`` program: what was being done, to which file or
option, what was found, and a ``hint:`` of what to do."""


class Error(Exception):
    """Anything that this package reports."""


class ArgumentError(Error, ValueError):
    """An argument or a config is wrong: there is no such task, length, split or setting."""


class ModelError(Error, ValueError):
    """A model cannot be used: it is no ONNX file, lacks an input or output, or does not run."""


class FileError(Error, OSError):
    """A file cannot be read or written, is damaged, or does not hold what it should."""


class MissingFileError(FileError, FileNotFoundError):
    """A file is not there."""
