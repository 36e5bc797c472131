"""Files of trained models: safetensors and JSON, read without executing anything in them."""

from ._card import card_text
from ._checkpoints import list_checkpoints, read_checkpoint, remove_checkpoints, write_checkpoint
from ._codec import decode, encode
from ._errors import ModelFileError
from ._folder import swap, whole_folder
from ._format import FORMAT_VERSION, MIGRATIONS, Saved
from ._store import ANNDATA, CARD, NAMES, owned, read_files, read_meta, write_files

__all__ = [
    "ANNDATA",
    "CARD",
    "FORMAT_VERSION",
    "MIGRATIONS",
    "NAMES",
    "ModelFileError",
    "Saved",
    "card_text",
    "decode",
    "encode",
    "list_checkpoints",
    "owned",
    "read_checkpoint",
    "read_files",
    "read_meta",
    "remove_checkpoints",
    "swap",
    "whole_folder",
    "write_checkpoint",
    "write_files",
]
