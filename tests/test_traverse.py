"""Traversals and genes of states: what was simulated is found, types stay, files keep the result."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import cplmixvi as cpl
from cplmixvi.tl._gene_sets import read_gmt, resolve_gene_sets
from cplmixvi.tl._leakage import TypeMarkers, standard_deviation
from cplmixvi.tl._traversal import monotonicity


def moving_genes(adata, name):
    """Genes that the simulated state of a type moves."""
    row = list(adata.obs["type"].cat.categories).index(name)
    return set(adata.var_names[adata.uns["state_loadings"][row].indices])


@pytest.fixture
def annotated(fitted_states):
    adata, model = fitted_states
    adata = adata.copy()
    cpl.tl.annotate(adata, model)
    # The simulated type that each category found.
    of = pd.crosstab(adata.obs["cplmixvi"], adata.obs["type"]).idxmax(axis=1).to_dict()
    return adata, model, of


def test_deviations_of_a_million_cells_are_not_rounded_away():
    values = np.random.default_rng(0).normal(6, 0.1, (1_000_000, 2)).astype(np.float32)
    np.testing.assert_allclose(standard_deviation(sparse.csr_matrix(values)), 0.1, rtol=0.01)


class TestTraverse:
    def test_genes_that_the_state_moves_are_found_and_others_stay(self, annotated):
        adata, model, of = annotated
        table = cpl.tl.traverse(adata, model).by_gene()
        main = table[table["path"] == "main"]
        for name, part in main.groupby("category"):
            truth = moving_genes(adata, of[name])
            best = part.nlargest(12, "effect")["gene"]
            assert len(truth & set(best)) >= 9
            moving = part[part["gene"].isin(best)]
            assert moving["monotonicity"].mean() > 0.95
            assert part.loc[~part["gene"].isin(truth), "effect"].median() < 0.3 * moving["effect"].median()

    def test_directions_are_those_of_the_cells(self, annotated):
        adata, model, _ = annotated
        result = cpl.tl.traverse(adata, model, categories="0")
        member = (adata.obs["cplmixvi"] == "0").to_numpy()
        walk = result.state[0, list(result.paths).index("main")]
        along = adata.obsm["X_cplmixvi"][member] @ (walk[-1] - walk[0])
        values = cpl.pp.log_normalize(adata.X)[member].toarray()
        part = result.by_gene().query("path == 'main'").nlargest(8, "effect")
        for gene, direction in zip(part["gene"], part["direction"], strict=True):
            observed = np.corrcoef(values[:, adata.var_names.get_loc(gene)], along)[0, 1]
            assert np.sign(observed) == direction

    def test_the_type_is_held(self, annotated):
        adata, model, of = annotated
        # Markers that no state moves.
        fold = pd.DataFrame(adata.varm["type_log_fold"], adata.var_names, adata.obs["type"].cat.categories)
        markers = {
            name: sorted(set(fold.index[fold[type_] > 0.5]) - moving_genes(adata, type_)) for name, type_ in of.items()
        }
        leakage = cpl.tl.traverse(adata, model, markers=markers, n_draws=3).leakage
        assert (leakage["n_markers"] == leakage["category"].map({name: len(m) for name, m in markers.items()})).all()
        assert leakage["markers_moved"].mean() <= 0.05
        assert leakage["markers_lost"].max() == 0
        assert leakage["flip_rate"].mean() <= 0.02

    def test_markers_that_the_state_moves_are_counted(self, annotated):
        adata, model, of = annotated
        leakage = cpl.tl.traverse(adata, model, markers={n: moving_genes(adata, t) for n, t in of.items()}).leakage
        main = leakage[leakage["path"] == "main"]
        assert main["markers_moved"].min() > 0.5
        assert main["markers_observed"].min() > 0.5

    def test_paths_run_between_the_quantiles_of_the_cells(self, annotated):
        adata, model, _ = annotated
        result = cpl.tl.traverse(adata, model, n_steps=5, quantiles=(0.1, 0.8))
        state = adata.obsm["X_cplmixvi"][adata.obs["cplmixvi"] == "1"]
        assert result.state.shape == (3, 3, 5, 2)
        assert list(result.paths) == ["1", "2", "main"]
        first = result.state[1, 0]
        np.testing.assert_allclose(first[[0, -1], 0], np.quantile(state[:, 0], [0.1, 0.8]), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(first[:, 1], state[:, 1].mean(), rtol=1e-3, atol=1e-4)

    def test_scale_is_that_of_the_library_size(self, annotated):
        adata, model, _ = annotated
        result = cpl.tl.traverse(adata, model, library_size=500)
        np.testing.assert_allclose(np.expm1(result.expression).sum(-1), 500, rtol=1e-3)
        assert result.params["scale"] == "log1p of counts per 500"
        steps = result.steps()
        assert len(steps) == 3 * 3 * 11 * 60
        row = steps.query("category == '2' and path == '1' and step == 4 and gene == @adata.var_names[7]")
        assert row["expression"].item() == result.expression[2, 0, 3, 7]

    @pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
    def test_files_keep_the_result(self, annotated, tmp_path, suffix):
        adata, model, _ = annotated
        given = cpl.tl.traverse(adata, model, gene_sets={"with/slash": ["gene0", "gene1"]})
        cpl.tl.state_genes(adata)
        cpl.tl.compare_states(adata)
        path = tmp_path / f"out.{suffix}"
        getattr(adata, f"write_{suffix}")(path)
        result = getattr(anndata, f"read_{suffix}")(path).uns["cplmixvi"]
        read = cpl.tl.Traversal.from_uns(result["traversals"])
        for name in ("gene_sets", "leakage", "members"):
            pd.testing.assert_frame_equal(getattr(read, name), getattr(given, name), check_dtype=False)
        pd.testing.assert_frame_equal(read.by_gene(), given.by_gene(), check_dtype=False)
        assert read.params["scale"] == given.params["scale"]
        assert len(result["state_genes"]["gene"]) == 3 * 2 * 60
        assert len(result["state_tests"]["spread_effect"]) == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"categories": ["0", "B"]}, "categories='B' names no category of the annotation; there are '0', '1', '2'"),
            ({"categories": []}, r"categories=\[\] names no category"),
            ({"n_steps": 2}, "n_steps=2"),
            ({"quantiles": (0.9, 0.1)}, "quantiles="),
            ({"library_size": 0}, "library_size=0"),
            ({"moved": -1}, "moved=-1"),
            ({"n_draws": 1.5}, "n_draws=1.5"),
            ({"gene_sets": {"mine": ["FOO"]}}, "No gene of gene_sets .'mine'."),
            ({"gene_sets": {"mine": "gene0"}}, "is a str; give a list"),
            ({"gene_sets": "no.gmt"}, "cannot be read"),
            ({"markers": {"0": ["FOO"]}}, "None of the markers"),
            ({"markers": pd.DataFrame({"gene": ["gene0"]})}, "no column 'category'"),
            ({"key_added": "leiden"}, "key='leiden' names no result"),
        ],
    )
    def test_bad_input_leaves_everything_as_it_was(self, annotated, options, message):
        adata, model, _ = annotated
        before = set(adata.uns["cplmixvi"])
        with pytest.raises(ValueError, match=message):
            cpl.tl.traverse(adata, model, **options)
        assert set(adata.uns["cplmixvi"]) == before

    def test_labels_of_another_model_are_refused(self, annotated):
        adata, model, _ = annotated
        adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.rename_categories({"0": "1", "1": "0"})
        with pytest.raises(ValueError, match="of another model"):
            cpl.tl.traverse(adata, model)

    def test_types_of_few_cells_are_left_out(self, annotated):
        adata, model, _ = annotated
        few = np.flatnonzero(adata.obs["cplmixvi"] == "1")[:3]
        others = np.flatnonzero(adata.obs["cplmixvi"] != "1")
        part = adata[np.sort([*few, *others])].copy()
        assert list(cpl.tl.traverse(part, model).categories) == ["0", "2"]
        with pytest.raises(ValueError, match="'1' has 3 cells here; at least 5"):
            cpl.tl.traverse(part, model, categories=["1"])

    @pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "zinb"])
    def test_one_dimension_and_other_values(self, make_counts, likelihood):
        adata = make_counts(n_obs=90)
        if likelihood != "zinb":
            adata.X = cpl.pp.log_normalize(adata.X) if likelihood == "normal" else (adata.X > 0).astype(np.float32)
        cpl.CplMixVI.setup_anndata(adata)
        model = cpl.CplMixVI(adata, n_categories=2, n_state=1, n_hidden=8, likelihood=likelihood)
        with pytest.warns(UserWarning):
            model.train(max_epochs=1, warm_start=False, enable_progress_bar=False)
        cpl.tl.annotate(adata, model)
        result = cpl.tl.traverse(adata, model)
        assert list(result.paths) == ["1"]
        assert np.isfinite(result.expression).all()
        assert (result.expression >= 0).all() or likelihood == "normal"
        assert set(cpl.tl.state_genes(adata)["dimension"]) == {1}

    def test_draws_are_those_of_the_seed_and_leave_the_generators_as_they_were(self, make_counts):
        adata, model = untrained(make_counts(n_obs=90))
        before = torch.get_rng_state(), np.random.get_state()[2]
        first, again, other = (cpl.tl.traverse(adata, model, n_draws=3, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[2] == before[1]
        assert first.params["seed"] == 1
        np.testing.assert_array_equal(first.leakage["flip_rate"], again.leakage["flip_rate"])
        assert (first.leakage["flip_rate"] != other.leakage["flip_rate"]).any()

    def test_scaled_values_have_no_markers_unless_they_are_given(self, make_counts):
        adata = make_counts(n_obs=90)
        values = cpl.pp.log_normalize(adata.X).toarray()
        adata.X = (values - values.mean(0)) / (values.std(0) + 1e-6)
        adata, model = untrained(adata, likelihood="normal")
        with pytest.warns(UserWarning, match="negative values.*Give markers"):
            result = cpl.tl.traverse(adata, model)
        assert (result.leakage["n_markers"] == 0).all()
        markers = cpl.tl.rank_genes(adata, layer="counts", n_genes=4)
        with warnings.catch_warnings(action="error"):
            result = cpl.tl.traverse(adata, model, markers=markers, gene_sets={"mine": ["gene0", "gene1"]})
        assert (result.leakage["n_markers"] == 4).all()
        image = cpl.pl.traversal(adata, standardize=False)[0, 0].images[0]
        assert image.get_clim()[0] < 0
        assert image.get_clim()[1] > 0


def untrained(adata, **options):
    """Cells and a model that knows next to nothing of them, and whose categories are not sure."""
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=2, n_hidden=8, **options)
    with warnings.catch_warnings(action="ignore"):
        model.train(max_epochs=1, warm_start=False, enable_progress_bar=False)
    cpl.tl.annotate(adata, model)
    return adata, model


def test_what_few_cells_show_of_markers_is_chance():
    rng = np.random.default_rng(0)
    values = sparse.csr_matrix(rng.poisson(1.0, (80, 6)).astype(float))
    for size, is_shown in ((29, False), (30, True)):
        markers = TypeMarkers(values, np.arange(size), np.arange(3), standard_deviation(values), on_counts=False)
        row = markers.leakage(np.ones((5, 3)), np.arange(size), moved=1.0)
        assert np.isfinite(row["markers_observed"]) == is_shown
        assert np.isfinite(row["markers_moved"])


class TestGeneSets:
    def test_gmt_is_read_and_matches_exactly_while_built_in_sets_match_in_any_case(self, tmp_path):
        (tmp_path / "sets.gmt").write_text("mine\tabout\tA\tb\t\n\nother\thttp://x\tZ\n")
        assert read_gmt(tmp_path / "sets.gmt") == {"mine": ["A", "b"], "other": ["Z"]}
        found = resolve_gene_sets(tmp_path / "sets.gmt", np.array(["b", "a", "A", "Isg15", "FOS"]))
        assert {name: list(positions) for name, positions in found.items()} == {
            "mine": [0, 2],
            "interferon": [3],
            "immediate early": [4],
        }

    @pytest.mark.parametrize("text", ["", "name only\n", "a\tb\n"])
    def test_what_is_no_gmt(self, tmp_path, text):
        (tmp_path / "bad.gmt").write_text(text)
        with pytest.raises(ValueError, match="GMT"):
            read_gmt(tmp_path / "bad.gmt")


def test_monotonicity_is_a_rank_correlation():
    steps = np.arange(6.0)
    x = np.stack([steps**3, -steps, np.ones(6), np.array([0, 1, 2, 2, 1, 0])], axis=1)
    np.testing.assert_allclose(monotonicity(x), [1, -1, 0, 0], atol=1e-6)


class TestStateGenes:
    def test_genes_that_the_state_moves_come_first(self, annotated):
        adata, _, of = annotated
        table = cpl.tl.state_genes(adata)
        best = table[table["rank"] <= 8]
        for name, part in best.groupby("category"):
            is_true = part["gene"].isin(moving_genes(adata, of[name]))
            assert is_true.groupby(part["dimension"]).mean().max() >= 0.8

    def test_correlation_and_pvalue_are_those_of_scipy(self, annotated):
        from scipy.stats import spearmanr

        adata, _, _ = annotated
        row = cpl.tl.state_genes(adata).query("category == '1' and dimension == 2 and rank == 5").iloc[0]
        member = (adata.obs["cplmixvi"] == "1").to_numpy()
        values = cpl.pp.log_normalize(adata.X)[member][:, adata.var_names.get_loc(row["gene"])].toarray().ravel()
        expected = spearmanr(values, adata.obsm["X_cplmixvi"][member, 1])
        assert row["correlation"] == pytest.approx(expected.statistic)
        assert row["pvalue"] == pytest.approx(expected.pvalue)

    def test_states_that_have_nothing_to_do_with_the_genes_give_no_discovery(self, annotated):
        adata, _, _ = annotated
        adata.obsm["X_cplmixvi"] = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
        table = cpl.tl.state_genes(adata, n_permutations=50)
        assert (table["pvalue"] < 0.05).mean() < 0.1
        assert (table["pvalue_adjusted"] < 0.05).mean() < 0.02
        assert (table["pvalue_max"] < 0.05).mean() < 0.02

    def test_what_cannot_be_ranked(self, annotated):
        adata, _, _ = annotated
        with pytest.raises(ValueError, match="n_genes=0"):
            cpl.tl.state_genes(adata, n_genes=0)
        with pytest.raises(ValueError, match="seed='x'"):
            cpl.tl.state_genes(adata, seed="x")
        with pytest.raises(ValueError, match="No category of 'cplmixvi' has the 10 cells"):
            cpl.tl.state_genes(adata[:9].copy())
        adata.obsm["X_cplmixvi"][0, 0] = np.nan
        for function in (cpl.tl.state_genes, cpl.tl.compare_states):
            with pytest.raises(ValueError, match="obsm.*not finite"):
                function(adata)
        del adata.obsm["X_cplmixvi"]
        with pytest.raises(ValueError, match="obsm.*is missing"):
            cpl.tl.state_genes(adata)


class TestCompareStates:
    def test_difference_of_spread_is_told_from_difference_of_location(self, annotated):
        adata, _, _ = annotated
        rng = np.random.default_rng(0)
        member = (adata.obs["cplmixvi"] == "1").to_numpy()
        state = rng.normal(size=(400, 2))
        state[member, 0] += 2
        state[member, 1] *= 4
        adata.obsm["X_cplmixvi"] = state.astype(np.float32)
        table = cpl.tl.compare_states(adata).set_index("dimension")
        assert table.loc[1, "location_effect"] > 0.3 > 0.1 > table.loc[1, "spread_effect"]
        assert table.loc[2, "spread_effect"] > 0.2 > 0.1 > table.loc[2, "location_effect"]
        assert table.loc[1, "location_pvalue"] < 1e-10
        assert table.loc[2, "spread_pvalue"] < 1e-10
        assert (table["n_categories"] == 3).all()

    def test_effects_of_nothing_are_near_zero_with_few_cells(self, annotated):
        adata = annotated[0]
        rng = np.random.default_rng(1)
        adata.obs["cplmixvi"] = adata.obs["cplmixvi"].cat.categories[rng.permutation(np.arange(400) % 3)]
        adata = adata[:60].copy()
        adata.obsm["X_cplmixvi"] = rng.normal(size=(60, 40))
        table = cpl.tl.compare_states(adata)
        assert (table[["location_effect", "spread_effect"]] >= 0).all(axis=None)
        # A share that was not corrected for the number of categories would be (k - 1) / (n - 1) = .034 on average.
        assert (table[["location_effect", "spread_effect"]].mean() < 0.025).all()

    def test_a_state_that_is_the_same_everywhere_differs_nowhere(self, annotated):
        adata, _, _ = annotated
        adata.obsm["X_cplmixvi"][:] = 1.0
        assert (cpl.tl.compare_states(adata)["location_pvalue"] == 1).all()

    def test_one_type_cannot_be_compared(self, annotated):
        adata, _, _ = annotated
        with pytest.raises(ValueError, match="1 categories .* at least 2"):
            cpl.tl.compare_states(adata[adata.obs["cplmixvi"] == "0"].copy())
