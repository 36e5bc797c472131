"""Checks and choices before training: whether the values suit the likelihood, and which genes are worth modelling."""

from cplmixvi.pp._checks import (
    ValuesReport,
    check_adata,
    check_likelihood,
    check_n_categories,
    check_setup,
    check_structure,
    check_values,
    is_number,
    is_whole,
    source_name,
)
from cplmixvi.pp._genes import select_genes
from cplmixvi.pp._hash import input_hash
from cplmixvi.pp._images import image_sides
from cplmixvi.pp._values import as_csr, layer_names, library_size, log_normalize, matrices, to_csr

__all__ = [
    "ValuesReport",
    "as_csr",
    "check_adata",
    "check_likelihood",
    "check_n_categories",
    "check_setup",
    "check_structure",
    "check_values",
    "image_sides",
    "input_hash",
    "is_number",
    "is_whole",
    "layer_names",
    "library_size",
    "log_normalize",
    "matrices",
    "select_genes",
    "source_name",
    "to_csr",
]
