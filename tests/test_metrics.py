"""Scores against closed forms, scikit-learn and numbers that are known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import metrics as sk

from cplmixvi import metrics
from cplmixvi.datasets import imbalanced_sizes

labellings = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.lists(st.integers(0, 7), min_size=n, max_size=n),
        st.permutations(range(8)),
    )
)
PARTITION_SCORES = ["accuracy", "balanced_accuracy", "purity", "nmi", "ami", "ari"]


class TestKnownNumbers:
    # Six cells of a, three of b, one of c. The best one-to-one matching is 0 -> a, 1 -> b (4 + 2 cells).
    y_true = list("aaaaaabbbc")
    y_pred = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]

    def test_by_hand(self):
        assert metrics.match_categories(self.y_true, self.y_pred) == {0: "a", 1: "b"}

    def test_a_category_without_a_cell_of_a_type_is_not_matched_to_it(self):
        # All cells of b are where those of a are.
        assert metrics.match_categories(["a", "a", "b", "c"], [0, 0, 0, 1]) == {0: "a", 1: "c"}
        assert metrics.match_categories(["a", "a", "a", "b"], [0, 0, 1, 0]) == {0: "a"}
        assert metrics.recall_by_type(["a", "a", "a", "b"], [0, 0, 1, 0]).to_dict() == {"a": 2 / 3, "b": 0}
        assert metrics.accuracy(self.y_true, self.y_pred) == pytest.approx(0.6)
        assert metrics.balanced_accuracy(self.y_true, self.y_pred) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
        assert metrics.purity(self.y_true, self.y_pred) == pytest.approx(0.6)
        assert metrics.recall_by_type(self.y_true, self.y_pred).to_dict() == pytest.approx(
            {"a": 4 / 6, "b": 2 / 3, "c": 0}
        )

    def test_rare_recall_looks_at_small_types_only(self):
        assert metrics.rare_recall(self.y_true, self.y_pred, below=4) == pytest.approx((2 / 3 + 0) / 2)
        assert np.isnan(metrics.rare_recall(self.y_true, self.y_pred, below=1))

    def test_confusion(self):
        table = metrics.confusion(self.y_true, self.y_pred)
        pd.testing.assert_frame_equal(
            table,
            pd.DataFrame(
                [[4, 2], [1, 2], [0, 1]],
                index=pd.Index(list("abc"), name="type"),
                columns=pd.Index([0, 1], name="category"),
            ),
        )

    def test_a_random_partition_of_tasic_sizes_scores_chance(self):
        """2.69 % when matched one to one, 6 to 8 % when every category takes its commonest type."""
        rng = np.random.default_rng(0)
        sizes = imbalanced_sizes(22_365, 115, smallest=16, largest=1_404)
        y_true = np.repeat(np.arange(115), sizes)
        y_pred = rng.permutation(np.arange(22_365) % 115)
        assert 0.0245 < metrics.accuracy(y_true, y_pred) < 0.0295
        assert 0.06 < metrics.purity(y_true, y_pred) < 0.09
        assert abs(metrics.ari(y_true, y_pred)) < 1e-3

    def test_splitting_every_type_does_not_pay(self):
        y_true = np.repeat([0, 1], 50)
        alone = np.arange(100)
        assert metrics.purity(y_true, alone) == 1
        assert metrics.accuracy(y_true, alone) == pytest.approx(0.02)


class TestInvariance:
    @given(labellings)
    @settings(max_examples=40, deadline=None)
    def test_names_of_categories_do_not_matter(self, drawn):
        y_true, y_pred, renamed = drawn
        other = [f"type {renamed[label]}" for label in y_pred]
        # Not balanced accuracy: ties between matchings that hold equally many cells may be broken differently.
        for name in set(PARTITION_SCORES) - {"balanced_accuracy"}:
            score = getattr(metrics, name)
            assert score(y_true, y_pred) == pytest.approx(score(y_true, other)), name

    @given(labellings)
    @settings(max_examples=40, deadline=None)
    def test_a_renamed_truth_is_perfect(self, drawn):
        y_true, _, renamed = drawn
        y_pred = [renamed[label] for label in y_true]
        for name in PARTITION_SCORES:
            assert getattr(metrics, name)(y_true, y_pred) == pytest.approx(1), name

    @given(labellings)
    @settings(max_examples=40, deadline=None)
    def test_accuracy_lies_between_its_bounds(self, drawn):
        y_true, y_pred, _ = drawn
        accuracy = metrics.accuracy(y_true, y_pred)
        table = metrics.confusion(y_true, y_pred).to_numpy()
        assert table.max() / table.sum() <= accuracy + 1e-12
        assert accuracy <= metrics.purity(y_true, y_pred) + 1e-12

    @given(labellings)
    @settings(max_examples=20, deadline=None)
    def test_information_scores_are_those_of_scikit_learn(self, drawn):
        y_true, y_pred, _ = drawn
        assert metrics.nmi(y_true, y_pred) == pytest.approx(sk.normalized_mutual_info_score(y_true, y_pred))
        assert metrics.ami(y_true, y_pred) == pytest.approx(sk.adjusted_mutual_info_score(y_true, y_pred))
        assert metrics.ari(y_true, y_pred) == pytest.approx(sk.adjusted_rand_score(y_true, y_pred))


class TestMissingLabels:
    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "(none)"], ids=["None", "nan", "NA", "ignored"])
    def test_cells_without_a_reference_are_left_out(self, missing):
        y_true = ["a", "a", "b", missing, missing]
        scores = metrics.evaluate(y_true, [0, 0, 1, 0, 1], ignore=["(none)"])
        assert (scores["n_obs"], scores["n_types"], scores["accuracy"], scores["ari"]) == (3, 2, 1, 1)

    def test_cells_without_a_prediction_are_wrong(self):
        y_true, y_pred = ["a", "a", "b", "b"], ["x", None, "y", "y"]
        assert metrics.accuracy(y_true, y_pred) == pytest.approx(0.75)
        assert metrics.purity(y_true, y_pred) == pytest.approx(0.75)
        assert metrics.correct_cells(y_true, y_pred).tolist() == [True, False, True, True]
        assert metrics.nmi(y_true, y_pred) < 1

    def test_no_reference_at_all(self):
        with pytest.raises(ValueError, match="none has a reference label"):
            metrics.accuracy([None, None], [0, 1])

    @pytest.mark.parametrize(
        "labels", [3, None, "abab", {"a": 1}, {"a", "b"}, np.ones((4, 1)), pd.DataFrame({"y": [1] * 4})]
    )
    @pytest.mark.parametrize("score", [*PARTITION_SCORES, "match_categories", "correct_cells", "evaluate"])
    def test_labels_are_one_per_cell(self, score, labels):
        with pytest.raises(ValueError, match="y_true .*; one label per cell is needed"):
            getattr(metrics, score)(labels, [0, 1, 0, 1])
        with pytest.raises(ValueError, match="y_pred .*; one label per cell is needed"):
            getattr(metrics, score)(["a", "b", "a", "b"], labels)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: metrics.brier(3, np.eye(2)), "y_true is a int"),
            (lambda: metrics.brier(["a", "b"], "x"), "proba is a str that is no array of numbers"),
            (lambda: metrics.brier(["a", "b"], [[0.5], [0.5, 0.5]]), "proba is a list that is no array"),
            (lambda: metrics.brier(["a", "b"], 0.5), "proba has shape"),
            (lambda: metrics.brier(["a", "b"], np.eye(2), "ab"), "categories='ab'"),
            (lambda: metrics.confidence(np.eye(2), ["a", "b"], floor="x"), "floor='x'"),
            (lambda: metrics.rare_recall(["a"], [0], below="x"), "below='x'"),
            (lambda: metrics.evaluate(["a"], [0], confidence="high"), "confidence is a str"),
            (lambda: metrics.consensus_matrix([[0, 1], [0, 1]], "2"), "n_categories='2'"),
            (lambda: metrics.disentanglement_score("x", np.ones((3, 2))), "factors is a str"),
            (lambda: metrics.disentanglement_score([1, 2, 1], "x"), "state is a str"),
            (lambda: metrics.disentanglement_score([1, 2, 1], np.ones((3, 2)), n_votes="x"), "n_votes='x'"),
            (lambda: metrics.mutual_information_gap([1, 2, 1], np.ones((3, 2)), "abc"), "category is a str"),
        ],
    )
    def test_mistakes_are_named(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_lengths_must_be_equal(self):
        with pytest.raises(ValueError, match="3 reference and 2 predicted"):
            metrics.nmi([0, 1, 1], [0, 1])

    def test_unused_categories_of_a_categorical_are_no_types(self):
        y_true = pd.Series(pd.Categorical(["a", "b", "a"], categories=["c", "b", "a"]), index=[5, 6, 7])
        assert metrics.confusion(y_true, [0, 1, 0]).index.tolist() == ["b", "a"]

    def test_labels_come_in_natural_order(self):
        assert metrics.confusion(["10", "2", "x"], [10, 2, 30]).index.tolist() == ["2", "10", "x"]


class TestCalibration:
    def test_calibrated_and_overconfident(self):
        correct = np.array([True] * 8 + [False] * 2)
        assert metrics.expected_calibration_error(correct, np.full(10, 0.8)) == pytest.approx(0)
        assert metrics.expected_calibration_error(correct, np.ones(10)) == pytest.approx(0.2)

    def test_gaps_of_different_bins_do_not_cancel(self):
        correct, confidence = [True, False], [0.55, 0.45]
        assert metrics.expected_calibration_error(correct, confidence, n_bins=2) == pytest.approx(0.45)
        assert metrics.expected_calibration_error(correct, confidence, n_bins=1) == pytest.approx(0)

    @pytest.mark.parametrize("confidence", [[1.5, 0.5], [np.nan, 0.5], [0.5]])
    def test_confidence_is_checked(self, confidence):
        with pytest.raises(ValueError, match="confidence"):
            metrics.expected_calibration_error([True, False], confidence)

    @pytest.mark.parametrize("correct", [[0, 2], [0.5, 1], [np.nan, 1], [True, None], ["yes", "no"], [True], True])
    def test_what_is_correct_is_true_or_false(self, correct):
        with pytest.raises(ValueError, match="correct"):
            metrics.expected_calibration_error(correct, [0.5, 0.5])
        assert metrics.expected_calibration_error([1, 0], [0.5, 0.5]) == pytest.approx(0)

    @pytest.mark.parametrize("n_bins", [0, 2.5, True, "15"])
    def test_bins_are_counted(self, n_bins):
        with pytest.raises(ValueError, match="n_bins="):
            metrics.expected_calibration_error([True, False], [0.5, 0.5], n_bins=n_bins)

    def test_edges_are_the_same_in_single_precision(self):
        edges = np.arange(1, 16) / 15
        # Each is the mean of its bin with the middle of the bin, unless rounding puts it into the next.
        confidence = np.concatenate([edges, edges - 1 / 30])
        correct = np.tile([True, False], 15)
        exact = metrics.expected_calibration_error(correct, confidence)
        rounded = metrics.expected_calibration_error(correct, confidence.astype(np.float32))
        assert rounded == pytest.approx(exact, abs=1e-6)
        assert metrics.expected_calibration_error([False], np.float32([1.0000001])) == 1

    def test_brier_equals_scikit_learn_once_matched(self):
        rng = np.random.default_rng(1)
        y_true = np.repeat(np.arange(3), 40)
        proba = rng.dirichlet(np.ones(3), size=120) * 0.3 + 0.7 * np.eye(3)[y_true]
        expected = np.mean(np.sum((proba - np.eye(3)[y_true]) ** 2, axis=1))
        assert metrics.brier(y_true, proba) == pytest.approx(expected)
        assert metrics.brier(y_true, proba[:, [2, 0, 1]], ["x", "y", "z"]) == pytest.approx(expected)

    def test_brier_extremes(self):
        assert metrics.brier(["a", "b"], np.eye(2)) == pytest.approx(0)
        # Category 0 goes to a: b is claimed to be a with certainty, the worst there is.
        assert metrics.brier(["a", "a", "b"], np.array([[1.0, 0], [1, 0], [1, 0]])) == pytest.approx(2 / 3)

    def test_confidence_is_mean_log_probability_by_type(self):
        proba = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
        table = metrics.confidence(proba, ["a", "a", "b"], ["0", "1"])
        assert table.loc["a", "0"] == pytest.approx((np.log(0.9) + np.log(0.4)) / 2)
        assert table.loc["b", "1"] == pytest.approx(np.log(0.8))
        assert np.isfinite(metrics.confidence(np.eye(2), ["a", "b"]).to_numpy()).all()

    @pytest.mark.parametrize("proba", [np.ones((2, 2)), -np.eye(2), np.full((2, 2), np.nan), np.eye(3)])
    def test_probabilities_are_checked(self, proba):
        with pytest.raises(ValueError, match="proba"):
            metrics.brier(["a", "b"], proba, ["0", "1"])


class TestArms:
    def test_agreement(self):
        result = metrics.agreement([[0, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 1]])
        np.testing.assert_allclose(result, [[1, 0.75, 0], [0.75, 1, 0.25], [0, 0.25, 1]])

    def test_equal_arms_have_the_identity(self):
        labels = np.arange(12) % 3
        np.testing.assert_array_equal(metrics.consensus_matrix([labels] * 3, 3), np.eye(3))

    def test_by_hand(self):
        # M = [[2, 1], [0, 1]]: rows 3, 1; columns 2, 2.
        result = metrics.consensus_matrix([[0, 0, 0, 1], [0, 0, 1, 1]], 2)
        np.testing.assert_allclose(result, [[2 / 3, (1 / 3 + 0 / 2) / 2], [(1 / 3 + 0 / 2) / 2, 1 / 2]])

    @given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 10_000))
    @settings(max_examples=30, deadline=None)
    def test_against_loops(self, n_arms, n_categories, seed):
        labels = np.random.default_rng(seed).integers(n_categories, size=(n_arms, 25))
        result = metrics.consensus_matrix(labels, n_categories)
        np.testing.assert_allclose(result, result.T)
        np.testing.assert_allclose(result, metrics.consensus_matrix(labels[::-1], n_categories))
        for i in range(n_categories):
            for j in range(n_categories):
                said = []
                for a in range(n_arms):
                    for b in range(n_arms):
                        larger = max((labels[a] == i).sum(), (labels[b] == j).sum())
                        if a != b and larger:
                            said.append(((labels[a] == i) & (labels[b] == j)).sum() / larger)
                assert result[i, j] == pytest.approx(np.mean(said) if said else 0)

    @pytest.mark.parametrize(
        "labels",
        [[[0, 1]], [[0, 2], [0, 1]], [[-1, 0], [0, 0]], [[0.0, 1], [0, 1]]],
        ids=["one", "high", "low", "float"],
    )
    def test_labels_are_checked(self, labels):
        with pytest.raises(ValueError, match="needed"):
            metrics.consensus_matrix(labels, 2)


def test_evaluate_collects_every_score():
    rng = np.random.default_rng(2)
    y_true = np.repeat(["a", "b", "c"], [60, 30, 10])
    proba = rng.dirichlet(np.ones(4), size=100)
    y_pred = proba.argmax(axis=1)
    scores = metrics.evaluate(y_true, y_pred, pd.DataFrame(proba))
    for name in [*PARTITION_SCORES, "rare_recall"]:
        assert scores[name] == getattr(metrics, name)(y_true, y_pred), name
    assert scores["brier"] == metrics.brier(y_true, proba)
    correct = metrics.correct_cells(y_true, y_pred)
    assert correct.mean() == pytest.approx(scores["accuracy"])
    assert scores["expected_calibration_error"] == metrics.expected_calibration_error(correct, proba.max(axis=1))
    assert (scores["n_obs"], scores["n_types"], scores["n_categories"]) == (100, 3, 4)
    assert metrics.evaluate(y_true, y_pred, sparse.csr_matrix(proba)) == scores
    assert "brier" not in metrics.evaluate(y_true, y_pred)


def test_a_confidence_for_every_cell_is_needed():
    with pytest.raises(ValueError, match="confidence has 2 entries for 3 cells"):
        metrics.evaluate(["a", "a", "b"], [0, 0, 1], confidence=[0.5, 0.5])


def test_a_label_to_ignore_may_be_a_string():
    truth, found = ["a", "b", "unknown", "a"], [0, 1, 2, 0]
    assert metrics.evaluate(truth, found, ignore="unknown") == metrics.evaluate(truth, found, ignore=["unknown"])
    assert metrics.evaluate(truth, found, ignore="unknown")["n_types"] == 2
