"""Named sets of genes: a few that everybody knows, those of a user, and files of sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

#: Human symbols; those of mouse differ in case only, and where a mouse gene has a name of its own it is listed too.
BUILT_IN: dict[str, tuple[str, ...]] = {
    "immediate early": (
        *("FOS", "FOSB", "FOSL2", "JUN", "JUNB", "JUND", "EGR1", "EGR2", "EGR3", "EGR4", "ARC", "NPAS4", "NR4A1"),
        *("NR4A2", "NR4A3", "IER2", "IER3", "IER5", "ATF3", "KLF2", "KLF4", "KLF6", "DUSP1", "DUSP2", "BTG2", "MYC"),
        *("ZFP36", "CYR61", "CCN1", "CCN2", "HOMER1", "BDNF", "SRF", "MAFF"),
    ),
    "housekeeping": (
        *("ACTB", "GAPDH", "B2M", "PPIA", "TBP", "HPRT1", "HPRT", "PGK1", "YWHAZ", "SDHA", "UBC", "RPLP0", "RPL13A"),
        *("RPS18", "GUSB", "TFRC", "TUBB", "EEF1A1", "EEF2", "EIF4A2", "ALDOA", "LDHA", "ENO1", "PGAM1", "COX4I1"),
        *("ATP5F1", "UBB", "CFL1", "PFN1", "TPT1", "HSP90AB1", "CALM1", "CALM2", "PSMB2", "SNRPD3", "CHMP2A", "VPS29"),
    ),
    "interferon": (
        *("ISG15", "ISG20", "IFI6", "IFI16", "IFI27", "IFI35", "IFI44", "IFI44L", "IFIH1", "IFIT1", "IFIT2", "IFIT3"),
        *("IFITM1", "IFITM3", "MX1", "MX2", "OAS1", "OAS2", "OAS3", "OASL", "IRF7", "IRF9", "STAT1", "STAT2", "DDX58"),
        *(
            "RSAD2",
            "CXCL10",
            "CXCL11",
            "USP18",
            "UBE2L6",
            "BST2",
            "XAF1",
            "HERC5",
            "HERC6",
            "SAMD9",
            "SAMD9L",
            "PLSCR1",
        ),
        *("LY6E", "TNFSF10", "EPSTI1", "CMPK2", "IFI204", "IFI27L2A", "IFI47", "IIGP1", "OAS1A", "OASL2"),
    ),
}


#: What the markers of the types are called among gene sets.
MARKERS = "markers"


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Gene sets of a file in the GMT format: one set a line, as name, description and genes between tabs.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Genes of each set, in the order of the file.

    Raises
    ------
    ValueError
        If the file cannot be read, a line has no gene, or two sets have one name.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"gene_sets={str(path)!r} cannot be read as text ({error}); a GMT file is needed: one set a line, as name, "
            "description and genes between tabs."
        ) from error
    sets = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        genes = [gene for gene in rest[1:] if gene]
        if not name or not genes:
            raise ValueError(
                f"Line {number} of {str(path)!r} is no gene set; GMT has name, description and genes between tabs."
            )
        if name in sets:
            raise ValueError(f"Line {number} of {str(path)!r} is another gene set {name!r}; rename one of them.")
        sets[name] = genes
    if not sets:
        raise ValueError(f"{str(path)!r} has no gene set; GMT has one a line.")
    return sets


def check_lists(given: Mapping[str, Iterable[str]], argument: str) -> None:
    """Raise ValueError unless the entries of a mapping are lists of names; ``argument`` is what the caller calls it."""
    for name, members in given.items():
        if isinstance(members, str | bytes) or not np.iterable(members):
            raise ValueError(f"{argument}[{name!r}] is a {type(members).__name__}; give a list of gene names.")


def resolve_gene_sets(
    given: Mapping[str, Iterable[str]] | str | Path | None, genes: np.ndarray
) -> dict[str, np.ndarray]:
    """Positions of the genes of all sets that have any.

    Parameters
    ----------
    given
        Sets of the user, or a GMT file; they come after the built-in ones and replace those of the same name.
    genes
        Names of the genes there are, ``(n_genes,)``. Names of the user's sets must match exactly; those of built-in
        sets match in any case, because symbols of mouse and human differ in case.

    Returns
    -------
    dict
        Ascending positions in ``genes`` of each set.

    Raises
    ------
    ValueError
        If ``given`` has no set, is not of the kinds above, or has one of the name of the types' markers, or no gene of
        all its sets is there.
    """
    genes = np.asarray(genes, dtype=str)
    upper = np.char.upper(genes)
    found = {name: np.flatnonzero(np.isin(upper, members)) for name, members in BUILT_IN.items()}
    if given is None:
        return {name: positions for name, positions in found.items() if len(positions)}
    if not isinstance(given, Mapping | str | Path):
        raise ValueError(
            f"gene_sets is a {type(given).__name__}; give a mapping from names of sets to lists of gene names, or the "
            "path of a GMT file."
        )
    own = given if isinstance(given, Mapping) else read_gmt(given)
    if MARKERS in own:
        raise ValueError(f"gene_sets has a set {MARKERS!r}, which is what the types' markers are called; rename it.")
    check_lists(own, "gene_sets")
    matched = {str(name): np.flatnonzero(np.isin(genes, [str(gene) for gene in own[name]])) for name in own}
    if not any(len(positions) for positions in matched.values()):
        raise ValueError(
            f"No gene of gene_sets ({', '.join(map(repr, list(matched)[:5]))}) is among the model's {len(genes)} "
            f"genes, such as {', '.join(genes[:3])}; names must match exactly."
        )
    return {name: positions for name, positions in {**found, **matched}.items() if len(positions)}
