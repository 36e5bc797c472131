"""What is wrong with the files of a model."""


class ModelFileError(ValueError):
    """Files of a model that cannot be written or read; its text says what is wrong and what to do."""
