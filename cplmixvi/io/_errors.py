"""What is wrong with the files of a model."""


class ModelFileError(ValueError):
    """Files of a model cannot be written or read; the message says what is wrong and how to fix it."""
